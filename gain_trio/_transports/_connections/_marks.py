"""The marks of a connection, and the times that its properties take."""

from __future__ import annotations

import math
from typing import final

import attrs

from gain_trio._kernel import documented_fields
from gain_trio._ring import whole_number

from ._seconds import checked_seconds

KIBIBYTE = 1024
STEP = 64 * KIBIBYTE
"""From the high mark to the low one."""


def _low_for(marks: Marks) -> int:
    """A step below the high mark, so that the peer of a slow program sees progress often."""
    high: object = marks.receive_high
    if not isinstance(high, int):
        return 0  # its own check refuses it
    return max(high - STEP, high // 4)


@final
@documented_fields
@attrs.frozen(kw_only=True)
class Marks:
    """The bounds of a connection's two queues, in bytes.

    Raises:
      ValueError: not ``0 <= receive_low < receive_high`` and ``send_high > 0``.
      TypeError: a value is not a number.
    """

    receive_high: int = attrs.field(default=256 * KIBIBYTE, validator=whole_number)
    """With this number of bytes received and unread, receiving stops, and TCP slows the peer down.  On the ring, bytes that
    arrive before the stop takes effect are still queued: 256 KiB as a rule, and at most as many as the run's receive buffers
    hold (2 MiB by default).  A program that reads slowly receives portions of 32 KiB."""
    receive_low: int = attrs.field(default=attrs.Factory(_low_for, takes_self=True), validator=whole_number)
    """Receiving goes on when no more than this number of bytes is unread.  By default 64 KiB less than ``receive_high``, but
    at least a quarter of it: so the peer of a program that reads slowly and steadily sees progress often."""
    send_high: int = attrs.field(default=512 * KIBIBYTE, validator=whole_number)
    """With this number of bytes sent and not accepted by the kernel, ``send`` waits.  Twice the usual piece of a large
    transfer, so that the next piece is queued when the kernel has accepted one."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.receive_low < self.receive_high or self.send_high <= 0:
            raise ValueError(f"need 0 <= receive_low < receive_high and send_high > 0: {self}")


def marks_or_usual(marks: object, name: str = "marks") -> Marks:
    """``marks``, or the usual ones for None.

    Raises:
      TypeError: they are none.
    """
    if marks is None:
        return Marks()
    if not isinstance(marks, Marks):
        raise TypeError(f"{name} must be gain_trio.Marks(...) or None, not {marks!r}")
    return marks


def checked_deadline(deadline: float) -> float:
    """A time on Trio's clock, as a float."""
    deadline = float(deadline)
    if math.isnan(deadline):
        raise ValueError("a deadline is a time on Trio's clock, and not nan")
    return deadline


def checked_idle_timeout(timeout: float) -> float:
    """``timeout``, if it is a valid idle timeout."""
    return checked_seconds("idle_timeout", timeout, positive=True)


def checked_close_timeout(timeout: float) -> float:
    """``timeout``, if it is a valid close timeout."""
    return checked_seconds("close_timeout", timeout)
