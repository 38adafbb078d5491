"""Published weights: which exist (tables), and how they are found, fetched, read and fitted to a model.

Import from the modules below; this file imports nothing, so that listing weights does not import torch.

- `pretrained`: the facts of every published set of weights, from `tables/<module>.toml` (no torch)
- `reading`: a file to a state dict, never running code that the file holds
- `hub`: the Hugging Face Hub and plain URLs, through their own caches
- `adapting`: a state dict fitted to a model of other channels, classes or key names
- `loading`: the walk from a configuration to a loaded model
"""
