"""Floor 2: the ring, without Trio."""

from ._options import RingOptions, whole_number
from ._ring import Completion, Operation, Ring, RingStatistics

__all__ = [
    "Completion",
    "Operation",
    "Ring",
    "RingOptions",
    "RingStatistics",
    "whole_number",
]
