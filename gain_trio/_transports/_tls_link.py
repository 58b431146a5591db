"""The stream under a :class:`trio.SSLStream` that never has to wait in it.

trio.SSLStream is made for any transport, and pays for that when it is cancelled: bytes that it has encrypted and not handed
on are lost, and so is the connection (and in one place a reply that a *receive* has to send).  So it is not allowed to wait.
Whatever may take long is waited for outside of it, where a cancellation is harmless, and then it is called in a shielded
scope and finds what it needs.  This module is what it calls, and what is waited for.

*Receiving.*  :meth:`Link.wait_for_record` waits until a whole TLS record lies in the queue of the connection below, and
takes nothing.  Then SSLStream gets exactly this record.  So it never holds the beginning of the next one, and after it has
returned what was in the record there is nothing more in it, and waiting for the next record is the right thing to do.  If
the record brought nothing for the program (a session ticket, a change of keys), SSLStream wants the next one; then
:class:`MustWait` goes through it, which does it no harm, and the whole is done again.

*Sending.*  The connection below has a higher mark than the TLS connection (:func:`marks_below`).  SSLStream is asked to
encrypt a piece only when less than the TLS connection's mark is unsent, so that ``send`` below, which takes all of a bytes
object and waits only above its own mark, does not wait.  Room is waited for by :meth:`Link.drain`, which is a ``flush`` of
the connection below, and harmless to cancel.

*Both at once.*  Receiving may have to send: TLS 1.3 answers a change of keys.  While another task drains, or sends, what is
to be sent is held, and that task sends it.  A peer that has us answer for ever and does not read is stopped by
:data:`CONTROL_ROOM`: with so much above the mark unsent, nothing more is decrypted.  And sending may have to receive, in a
renegotiation of TLS 1.2: a record is waited for by one task at a time, whoever it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ._connection import Connection, Marks

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE = 65536
"""The most bytes encrypted at once."""
CONTROL_ROOM = 2 * PIECE
"""Above the mark: a piece encrypted just below the mark, and TLS's own messages."""
_ROOM_BELOW = 2 * CONTROL_ROOM

_HEADER = 5
_RECORD_TYPES = range(20, 25)  # change_cipher_spec, alert, handshake, application_data, heartbeat
_MAX_RECORD = 16384 + 2048  # RFC 5246, 6.2.3; TLS 1.3 allows less


def marks_below(marks: Marks) -> Marks:
    """The marks of the connection under a TLS connection with these."""
    return Marks(
        receive_high=marks.receive_high, receive_low=marks.receive_low, send_high=marks.send_high + _ROOM_BELOW
    )


@final
class MustWait(Exception):
    """A record is needed and none is there."""


def _record_size(header: bytes) -> int:
    """How long the record that begins like this is, header included; 0 if this is no TLS."""
    length = int.from_bytes(header[3:5], "big")
    if header[0] not in _RECORD_TYPES or header[1] != 3 or length > _MAX_RECORD:
        return 0
    return _HEADER + length


@final
class Link(trio.abc.Stream):
    """See above.  Has the connection below to itself."""

    def __init__(self, below: Connection) -> None:
        self.below = below
        self.is_handshaking = True
        """Until it is over, calls wait: it has nothing that a cancellation could harm."""
        self.is_closing = False
        self.send_error: OSError | None = None
        """Why sending has failed.  SSLStream is not told: it would not receive any more, either."""
        self.has_unread = False
        """A sender has taken a record, in which there may be something to receive."""
        self._ready = 0  # bytes of below's queue that SSLStream may have
        self._ended = False
        self._receiving = trio.Lock()
        self._sending = trio.Lock()
        self._held = bytearray()  # to be sent by whoever has the lock
        self._drain_scope: trio.CancelScope | None = None

    # --- receiving ---

    async def wait_for_record(self, *, to_send: bool = False) -> None:
        """Wait until SSLStream can be given something, or has to be told of the end of the stream.

        With ``to_send`` a sender asks, which cannot go on without.  It takes nothing, and is a cancellation point.  Raises
        what :meth:`Connection.receive` raises.
        """
        if self._receiving.locked():
            await self._receiving.acquire()
        else:
            self._receiving.acquire_nowait()
        try:
            if self._ready or self._ended or (self.has_unread and not to_send):
                await trio.lowlevel.checkpoint_if_cancelled()
                return
            queued = await self.below._fill(_HEADER)
            size = _HEADER
            if queued >= _HEADER:
                size = _record_size(self.below.peek(_HEADER)) or queued  # what is no TLS is for OpenSSL to refuse
                if queued < size:
                    queued = await self.below._fill(size)
            self._ended = queued < size
            self._ready = min(queued, size)
        finally:
            self._receiving.release()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - Trio's signature
        """For SSLStream: a record.  Of any size: the argument is for what has been decrypted."""
        if self.is_handshaking:
            await self.wait_for_record()
        if self._ready and not self._receiving.locked():
            count, self._ready = self._ready, 0
            return self.below.next(count)
        if self._ended:
            return b""
        raise MustWait

    # --- sending ---

    @property
    def outbound_buffered(self) -> int:
        """Encrypted bytes that the kernel has not taken."""
        return self.below.outbound_buffered + len(self._held)

    async def send_all(self, data: Buffer) -> None:
        """For SSLStream.  Does not wait for the peer, but in a handshake."""
        if self.is_handshaking:
            await self.below.send(data)
        elif self._sending.locked():
            self._held += data
        else:
            self._held += data
            self._sending.acquire_nowait()
            try:
                await self._send_held()
            finally:
                self._sending.release()

    async def _send_held(self) -> None:
        while self._held:
            data = bytes(self._held)
            self._held.clear()
            try:
                with trio.CancelScope(shield=True):  # it is below its mark: it does not wait
                    await self.below.send(data)
            except trio.BrokenResourceError as error:
                self._failed(error)

    def _failed(self, error: trio.BrokenResourceError) -> None:
        assert isinstance(error.__cause__, OSError)
        self.send_error = error.__cause__.with_traceback(None)
        self._held.clear()

    async def drain(self) -> None:
        """Wait until the kernel has taken what was sent, sending has failed, or the connection is being closed.

        Raises :exc:`trio.ClosedResourceError` when the connection below was closed.
        """
        async with self._sending:
            if self.is_closing:
                return
            try:
                with trio.CancelScope() as self._drain_scope:
                    await self.below.flush()
            except trio.BrokenResourceError as error:
                self._failed(error)
            finally:
                self._drain_scope = None
                await self._send_held()

    def stop_draining(self) -> None:
        """The connection is being closed: those who drain return."""
        self.is_closing = True
        if self._drain_scope is not None:
            self._drain_scope.cancel()

    async def wait_until_idle(self) -> None:
        """Until nobody drains or sends; after :meth:`stop_draining` that takes no longer than a few steps."""
        async with self._sending:
            pass

    async def wait_send_all_might_not_block(self) -> None:
        """For nobody: SSLStream's own is not used."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """For SSLStream, which has sent close_notify.  The connection below is closed by the TLS connection."""
        await trio.lowlevel.checkpoint()
