"""Other libraries' spellings of what ziggurat has: timm's module names and helpers, and names that were given up.

`deprecated.json` maps former names of architectures to present ones. `timm.install()` lets code that says
`from timm.layers import ...` run on ziggurat.
"""
