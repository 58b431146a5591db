"""Rings by themselves, without Trio, and what their operations call."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

from gain_trio import Feature, RingOptions
from gain_trio._kernel import CompletionFlag
from gain_trio._ring import Ring

EVERYTHING = Feature(sum(Feature))


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[Ring]:
    """A ring, closed at the end with nothing in flight and without a stray completion."""
    ring = Ring(RingOptions(**options))
    try:
        yield ring
        assert ring.statistics().stale == 0
    finally:
        left = ring.close()
    assert left == 0


class Results:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.all: list[int] = []
        self.final: int | None = None

    def __call__(self, result: int, flags: int) -> None:
        self.all.append(result)
        if not flags & CompletionFlag.MORE:
            assert self.final is None, "an operation has one final completion"
            self.final = result

    @property
    def ended(self) -> bool:
        return self.final is not None


class Receiver:
    """A receive that is armed again whenever the kernel ends it before the end of the stream."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._ring = ring
        self._sock = sock
        self.data = bytearray()
        self.starved = 0
        self.end: int | None = None
        self._arm()

    def _arm(self) -> None:
        self.operation = self._ring.receive(self._sock.fileno(), self._completed)

    def _completed(self, result: int, flags: int) -> None:
        if flags & CompletionFlag.BUFFER:
            self.data += self._ring.buffer_data()
        if flags & CompletionFlag.MORE:
            return
        if result > 0 or result == -errno.ENOBUFS:
            self.starved += result == -errno.ENOBUFS
            self._arm()
        else:
            self.end = result


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))
