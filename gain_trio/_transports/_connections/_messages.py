"""The wait between two messages, where a connection can end without loss.

A call of :meth:`MessageLoop.wait_data` marks that it waits there.  A drain finds the mark and sets a read deadline, and the
call takes its end for an answer.  So a message costs two stores, and no task, scope or timer: the deadline exists only when
the server drains.  What has arrived is never too late for a deadline, which is why no request that has arrived is lost.

On the ring ``wait_data()``, and ``messages()`` without an argument, are calls of the compiled connection (between.c).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final, overload

import trio

from ._framing import Framing

FIRST_SECONDS = 1.0
"""Seconds that a peer which has sent nothing yet has for its first byte when the server drains."""

T = TypeVar("T")


class DrainDeadline(NamedTuple):
    """The read deadline that a drain has given to a wait between two messages, and the one to restore after it.

    A tuple of floats, because the compiled connection reads it, too.
    """

    limit: float
    own: float


class MessageLoop(Framing, Protocol):
    """The calls that wait for the next message, if there is to be one: a connection has them by their names."""

    __slots__ = ()

    _between: bool
    """Whether a task waits between two messages in code that is written in Python (:meth:`_waits_between` says it of all).
    Slots of the implementation, as are these:"""
    _drains: bool
    """Whether the server drains."""
    _drain_deadline: DrainDeadline | None
    """The deadline of the wait in progress, if the server drains."""
    read_deadline: float
    """See :attr:`Connection.read_deadline`."""

    @property
    @abc.abstractmethod
    def _has_received_nothing(self) -> bool:
        """Whether the peer has not sent a byte yet, apart from a PROXY protocol header and a TLS handshake."""

    @abc.abstractmethod
    def receive(self, max_bytes: int | None = None) -> Awaitable[bytes]:
        """See :meth:`Connection.receive`."""

    def _wait_first(self) -> Awaitable[int]:
        """Wait until a byte is queued, or ready to be received, or the stream has ended: then the result is 0."""
        return self._fill(1)

    async def wait_data(self) -> bool:
        """Wait between two messages: True when the next has begun to arrive, False when it is time to finish.

        This is the way for a handler to end where nothing is lost::

            while await connection.wait_data():
                request = await connection.receive_exactly(8)
                await connection.send(answer(request))

        It returns True while received bytes are unread, also when the server drains (:meth:`Server.drain`): every request
        that has arrived can be answered.  It takes none of them.

        It returns False at the end of the stream; and, once the server drains, as soon as nothing is unread.  A peer that
        has not sent a byte yet has a second then, so a client that connected just before the drain is served, too.  A PROXY
        protocol header and a TLS handshake do not count as bytes.  The second begins with the drain, or with this call if
        that is later.  The handler returns, or says goodbye first: the connection is as good as before.

        A message that has begun is the handler's to limit: set :attr:`Connection.read_deadline`, or the drain waits for
        the rest of it until its own timeout.

        Raises:
          trio.TooSlowError: the program's own :attr:`Connection.read_deadline` has passed.

        And what :meth:`Connection.receive` raises.  Like it this is always a cancellation point, and loses nothing when it
        is cancelled.
        """
        return await self._first_of_message(self._wait_first, 0) > 0

    @overload
    def messages(self, receive: None = None, /) -> AsyncIterator[bytes]: ...

    @overload
    def messages(self, receive: Callable[[], Awaitable[T | None]], /) -> AsyncIterator[T]: ...

    def messages(self, receive: Callable[[], Awaitable[Any]] | None = None, /) -> AsyncIterator[Any]:
        r"""Iterate over the messages of the stream, until it ends or the server drains.

        ::

            async for line in connection.messages(connection.receive_line):
                await connection.send(line.upper() + b"\n")

        Before each message it waits as :meth:`wait_data` does, which describes when the iteration ends.  It keeps no task
        and nothing to close, so it can be left at any time and begun again.

        Args:
          receive: awaited for each message: a method such as :meth:`receive_line`, a :func:`functools.partial` of it
            (``functools.partial(connection.receive_line, max_bytes=100)``), or any async function without arguments that
            takes a message from this connection.  What it raises leaves the iteration, and so does its None end it.
            Without ``receive`` a message is what :meth:`Connection.receive` returns.
        """
        return self._chunks() if receive is None else _Messages(self, receive)

    def _chunks(self) -> AsyncIterator[bytes]:
        """Iterate over pieces as they arrive."""
        return _Chunks(self)

    def _waits_between(self) -> bool:
        """Whether a task waits between two messages."""
        return self._between

    async def _first_of_message(self, receive: Callable[[], Awaitable[T]], nothing: T) -> T:
        """Await ``receive()``, which waits for the first byte of a message; ``nothing`` when the drain ends it."""
        if self._waits_between():
            raise trio.BusyResourceError("another task is already receiving on this connection")
        self._between = True  # type: ignore[misc]  # a slot of the implementation
        if self._drains:
            self._set_drain_deadline()
        try:
            return await receive()
        except trio.TooSlowError:
            drain_deadline = self._drain_deadline
            if drain_deadline is None or self.read_deadline != drain_deadline.limit:
                raise
            return nothing
        finally:
            self._between = False  # type: ignore[misc]  # a slot of the implementation
            if self._drain_deadline is not None:
                self._restore_deadline(self._drain_deadline)

    def _set_drain_deadline(self) -> None:
        """Limit the wait between two messages."""
        now = float(trio.current_time())  # a clock of the program's may have other numbers
        limit = now + FIRST_SECONDS if self._has_received_nothing else now
        own = self.read_deadline
        if limit < own:
            self._drain_deadline = DrainDeadline(limit, own)  # type: ignore[misc]  # a slot of the implementation
            self.read_deadline = limit  # type: ignore[misc]  # a slot of the implementation

    def _restore_deadline(self, drain_deadline: DrainDeadline) -> None:
        self._drain_deadline = None  # type: ignore[misc]  # a slot of the implementation
        if self.read_deadline == drain_deadline.limit:  # otherwise the program has set another one meanwhile
            self.read_deadline = drain_deadline.own  # type: ignore[misc]  # a slot of the implementation

    def _begin_drain(self) -> None:
        """The server drains: end the wait between two messages, this one and those to come."""
        if not self._drains:
            self._drains = True  # type: ignore[misc]  # a slot of the implementation
            if self._waits_between():
                self._set_drain_deadline()


@final
class _Chunks(AsyncIterator[bytes]):
    """What :meth:`MessageLoop.messages` returns for pieces as they arrive."""

    __slots__ = ("_connection",)

    def __init__(self, connection: MessageLoop) -> None:
        self._connection = connection

    async def __anext__(self) -> bytes:
        connection = self._connection
        data = await connection._first_of_message(connection.receive, b"")
        if not data:
            raise StopAsyncIteration
        return data


@final
class _Messages(AsyncIterator[T], Generic[T]):
    """What it returns for messages that a call takes."""

    __slots__ = ("_connection", "_receive")

    def __init__(self, connection: MessageLoop, receive: Callable[[], Awaitable[T | None]]) -> None:
        if not callable(receive):
            raise TypeError(f"messages() takes an async function without arguments, not {receive!r}")
        self._connection = connection
        self._receive = receive

    async def __anext__(self) -> T:
        message = await self._receive() if await self._connection.wait_data() else None
        if message is None:
            raise StopAsyncIteration
        return message
