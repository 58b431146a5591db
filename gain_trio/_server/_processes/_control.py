"""The control channel between server and worker process: messages over a pair of Unix sockets, in order.

Both ends have this class.  The end of the stream means that the other process is gone, or, to a worker, that it is to end.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import final

import trio

from gain_trio._transports import Connection, IncompleteMessage

from ._boot import FRAME
from ._control_messages import LARGEST, Message, decode, encode


@final
class ControlChannel:
    """One end of the channel.  It owns the socket that it is made of."""

    def __init__(self, sock: socket.socket) -> None:
        self._connection = Connection.from_socket(sock)
        self._time_slice = trio.StrictFIFOLock()
        self._length: int | None = None  # of the message that is being received

    async def send(self, message: Message) -> None:
        """Send a message, and return when the kernel has it: the other end can read it then, even if this process dies.

        Any number of tasks may do so at once.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: the other process is gone, or this end is closed.
          ValueError: the message is too long.
        """
        await self.send_frame(encode(message))

    async def send_frame(self, content: bytes) -> None:
        """Send what :func:`encode` has made, or the first message, which ``_boot.py`` reads."""
        async with self._time_slice:
            self._queue(content)
            await self._connection.flush()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Callable[[Message], None]]:
        """A turn to send messages, with the function that does it: ``async with control.turn() as say: say(message)``.

        A message that ``say`` has returned from goes out whole, whichever task is cancelled then.  So its contents can be
        crossed off where it came from in the same step: it is neither lost nor sent twice.  The block ends when the
        kernel has it.

        Raises what :meth:`send` raises, ``say`` included; nothing of the message is sent then.
        """
        async with self._time_slice:
            yield lambda message: self._queue(encode(message))
            await self._connection.flush()

    def _queue(self, content: bytes) -> None:
        # Not send(), which may be cancelled without a word of whether the frame is on its way.
        self._connection._send_nowait(FRAME.pack(len(content)) + content)

    async def receive(self) -> Message | None:
        """The next message; None at the end of the stream, and when the other process is gone.

        A message that the other process's end cut short is not a message.  Cancelling it loses nothing.

        Raises:
          ValueError: the bytes are not a message; the bytes after them cannot be read either.
        """
        try:
            if self._length is None:
                (self._length,) = FRAME.unpack(await self._connection.receive_exactly(FRAME.size))
            if self._length > LARGEST:
                raise ValueError(
                    f"a message of {self._length} bytes comes through the control channel, more than {LARGEST}"
                )
            content = await self._connection.receive_exactly(self._length)
        except (IncompleteMessage, trio.BrokenResourceError):
            return None
        self._length = None
        return decode(content)

    async def send_eof(self) -> None:
        """Send no more.  To a worker it means that it is to cancel everything and to end."""
        async with self._time_slice:
            await self._connection.send_eof()

    def close(self) -> None:
        """Close this end at once."""
        self._connection.abort()
