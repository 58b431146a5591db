"""Floor 2: the ring, without Trio."""

from ._options import RingOptions
from ._ring import Completion, Operation, Ring, RingStatistics

__all__ = ["Completion", "Operation", "Ring", "RingOptions", "RingStatistics"]
