"""What may be wrong with an argument."""

from __future__ import annotations

import math


def check_timeout(name: str, seconds: float) -> float:
    """``seconds``, if it is a length of time; 0 is one, and so is ``math.inf``.

    Raises:
      TypeError: it is no number.
      ValueError: it is nan, or negative.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is a number of seconds, not {seconds!r}")
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{name} is at least 0 seconds, or math.inf, not {seconds}")
    return seconds
