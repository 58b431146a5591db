"""How a server treats an exception that leaves a handler, a callback or a protocol: once for all kinds of servers.

*Whose it is.*  An exception group is split: a :exc:`BaseException` in it that is not an :exc:`Exception` (a cancellation,
KeyboardInterrupt) propagates in any case, and the rest is the handler's failure.

*Whose fault it is.*  A peer can hang up at any moment, also in the middle of a message, can send a message that is too long,
and can be slow.  What a connection raises then is not the handler's fault, and a peer must not be able to fill the log with
tracebacks: it gets one line at level info.  A group is the peer's fault if everything in it is.  All else is an error of the
program, with its traceback.

A group of one exception, as every nursery makes it, is that exception.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final, final

import attrs
import trio

from gain_trio._transports import IncompleteMessage, MessageTooLong

from ._statistics import CloseCause

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

_PEERS: Final[tuple[tuple[type[BaseException], CloseCause], ...]] = (
    (trio.TooSlowError, "too_slow"),
    (trio.BrokenResourceError, "broken"),
    (IncompleteMessage, "broken"),
    (MessageTooLong, "broken"),
)
"""What a connection raises that is the peer's doing, or the network's, and what it counts as."""


def only_one_of(error: BaseException) -> BaseException:
    """The exception in a group that has one, which may be a group again, or else the group; any other is itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the one exception in a group of one, which a nursery made, in place of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = only_one_of(group)
        raise error from error.__cause__


def first_of(error: BaseException) -> BaseException:
    """The first exception in a group that is no group; any other is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def consists_of(error: BaseException, condition: Callable[[BaseException], object]) -> bool:
    """Whether the condition holds for an exception, or for all that are in a group."""
    if isinstance(error, BaseExceptionGroup):
        return all(consists_of(one, condition) for one in error.exceptions)
    return bool(condition(error))


def leaves_of(error: BaseException | None) -> list[BaseException]:
    """The exceptions in a group that are no groups; any other is itself, and None has none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves_of(inner)]
    return [] if error is None else [error]


def is_cancellation(error: BaseException) -> bool:
    """Whether it is :exc:`trio.Cancelled`, or a group of nothing else."""
    return consists_of(error, lambda one: isinstance(one, trio.Cancelled))


def parted(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What of an exception is a failure, and what propagates in any case; None for what there is not."""
    if isinstance(error, Exception):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        return error.split(Exception)
    return None, error


@final
@attrs.frozen
class Verdict:
    """What a failure counts as."""

    cause: CloseCause
    """``"error"`` is the program's fault, everything else the peer's."""
    error: BaseException
    """For the message: the first exception that is no group, or a group of several."""

    @property
    def text(self) -> str:
        """Why, in words: for a broken connection what the system said."""
        error = self.error
        if isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None:
            error = error.__cause__
        return str(error) or type(error).__name__


def judged(error: BaseException) -> Verdict:
    """Whose fault a failure is."""
    if consists_of(error, lambda one: _peers_cause(one) is not None):
        first = first_of(error)
        return Verdict(_peers_cause(first) or "error", first)
    return Verdict("error", only_one_of(error))


def own_fault(error: Exception) -> Exception:
    """What to raise for a failure that has nothing to do with the peer of the connection that it leaves.

    A program has other connections, and timeouts of its own: ``trio.TooSlowError`` from its database would be judged as the
    peer's doing.  Such a failure is the cause of the RuntimeError that is returned; any other is returned itself.
    """
    if judged(error).cause == "error":
        return error
    failure = RuntimeError(f"the app has failed with {first_of(error)!r}")
    failure.__cause__ = error
    return failure


def _peers_cause(error: BaseException) -> CloseCause | None:
    return next((cause for kind, cause in _PEERS if isinstance(error, kind)), None)
