"""Ziggurat in other libraries' terms: as timm, as MindCV, under former names, and as a part of three more libraries.

`deprecated.json` maps former names of architectures to present ones, `mindcv.json` MindCV's names. `timm.install()` lets
code that says `from timm.layers import ...` run on ziggurat; `mindcv` has the functions of `mindcv.models`. `torchvision`,
`segmentation_models` and `transformers` put backbones into those libraries; each imports the library of its name, which an
extra installs.
"""
