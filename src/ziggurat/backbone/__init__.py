"""The contract that every architecture is written on: `Backbone`, its `Plan`, and the levels that it makes."""

from .base import Backbone
from .family import Family
from .foreign import Foreign, as_backbone
from .plan import FeatureInfo, Plan, Step, take_indices, take_strides
from .units import group_modules, group_parameters

__all__ = [
    "Backbone",
    "Family",
    "FeatureInfo",
    "Foreign",
    "Plan",
    "Step",
    "as_backbone",
    "group_modules",
    "group_parameters",
    "take_indices",
    "take_strides",
]
