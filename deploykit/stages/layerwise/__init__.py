"""Where two graphs of one network begin to differ, activation by activation."""

from deploykit.stages.layerwise.faults import TOLERANCES, Fault, decibels, drop_db, find_faults
from deploykit.stages.layerwise.figures import Sums, ValueComparison
from deploykit.stages.layerwise.streaming import GROUP_NUMBERS, LayerReport, compare_layers

__all__ = [
    "GROUP_NUMBERS",
    "TOLERANCES",
    "Fault",
    "LayerReport",
    "Sums",
    "ValueComparison",
    "compare_layers",
    "decibels",
    "drop_db",
    "find_faults",
]
