"""Balancers: which consumer a connection goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from ._consumer import Consumer


@final
class RoundRobin:
    """Each consumer in turn."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, consumers: Sequence[Consumer]) -> Consumer:
        """The consumer whose turn it is."""
        consumer = consumers[self._next % len(consumers)]
        self._next = (self._next + 1) % len(consumers)
        return consumer
