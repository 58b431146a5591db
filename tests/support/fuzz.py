"""Hypothesis as this project's tests use it: the same examples in every run, and no clock.

A module that uses Hypothesis imports from here, so that the profile is loaded before its tests are made.  Beside the
examples that it names, a test has 25; with ``GAIN_TRIO_THOROUGH=1``, as .ci/nightly sets it, 200.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

__all__ = ["assume", "cut", "example", "examples", "given", "places", "st"]

THOROUGH = os.environ.get("GAIN_TRIO_THOROUGH") == "1"

# A timing decides no test, neither its length nor how long its examples take to make.  Derandomized, nothing is kept from
# one run for the next.
settings.register_profile(
    "gain_trio",
    derandomize=True,
    deadline=None,
    max_examples=200 if THOROUGH else 25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gain_trio")


def examples(count: int) -> settings:
    """A number of examples of its own for a test, which is for a thorough run; a usual one has a quarter of them."""
    return settings(max_examples=count if THOROUGH else count // 4)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The pieces of ``data`` when it is cut at these places; none of them is empty."""
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def places(largest: int) -> st.SearchStrategy[list[int]]:
    """Where to cut."""
    return st.lists(st.integers(0, largest), max_size=16)
