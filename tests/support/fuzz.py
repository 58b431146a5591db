"""Hypothesis as this project's tests use it: the same examples in every run, and no clock.

A module that uses Hypothesis imports from here, so that the profile is loaded before its tests are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

__all__ = ["assume", "cut", "example", "given", "places", "settings", "st"]

# A timing decides no test, neither its length nor how long its examples take to make.  Derandomized, nothing is kept from
# one run for the next.
settings.register_profile("gain_trio", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gain_trio")


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The pieces of ``data`` when it is cut at these places; none of them is empty."""
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def places(largest: int) -> st.SearchStrategy[list[int]]:
    """Where to cut."""
    return st.lists(st.integers(0, largest), max_size=16)
