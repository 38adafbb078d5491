"""Ziggurat in other libraries' terms: timm's module names and helpers, names that were given up, and three interfaces.

`deprecated.json` maps former names of architectures to present ones. `timm.install()` lets code that says
`from timm.layers import ...` run on ziggurat. `torchvision`, `segmentation_models` and `transformers` put backbones into
those libraries; each imports the library of its name, which an extra installs.
"""
