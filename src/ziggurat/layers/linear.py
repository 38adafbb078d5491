"""The dense layer under the name that timm's code uses."""

from __future__ import annotations

from torch import nn

__all__ = ["Linear"]


class Linear(nn.Linear):
    """torch's Linear; autocast needs no help of ours."""
