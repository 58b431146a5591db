"""Lengths of time that are given as arguments."""

from __future__ import annotations

import math


def checked_seconds(name: str, seconds: object, *, positive: bool = False) -> float:
    """``seconds``, if it is a length of time; ``math.inf`` is one, and so is 0 unless it has to be ``positive``.

    Raises:
      TypeError: it is not a number.
      ValueError: it is nan, or too little.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is a number of seconds, or math.inf, not {seconds!r}")
    if math.isnan(seconds) or seconds < 0 or (positive and seconds == 0):
        least = "more than" if positive else "at least"
        raise ValueError(f"{name} is {least} 0 seconds, or math.inf, not {seconds}")
    return float(seconds)
