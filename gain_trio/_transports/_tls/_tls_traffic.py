"""What goes through a TLS connection: bytes of the connection below on one side, the program's on the other.

Encrypting and decrypting are plain calls (``_tls_engine.py``).  So a task waits only for the connection below, in calls of
which none loses anything when it is cancelled, and between two waits nothing can interrupt it: before another task runs,
all bytes received from below have been decrypted and queued, and all encrypted bytes have been sent below.

*Receiving.*  A task that finds too little in the queue here receives a chunk from below (:meth:`TlsTraffic._feed`), has all
of it decrypted, and sends the answers of TLS below.  Only a task that receives decrypts: other bytes stay encrypted in the
queue of the connection below, up to its mark.

*Sending.*  A task waits until less than the mark is queued below, and then has a piece encrypted and handed down.  Both
connections have the same marks.  More than the mark can be queued below: by a piece, by what a server of callbacks sends
without waiting, and by TLS's own answers.  A peer that has us answer for ever and does not read is stopped: with a lot of
them above the mark (:data:`ANSWERS`) nothing more is decrypted.

*Both at once.*  In a renegotiation of TLS 1.2 nothing can be encrypted before the peer has answered.  Then the data to send
is kept as it is, and encrypted when the answer allows it, which a task that receives has got, or the task that sends, which
receives if no other task does.  As it may receive bytes that the program does not want yet, it stops at the mark.

*One at a time.*  Below, one task receives and one waits for room.  Here any of them may have to do either, so each of the
two is a :class:`Exclusive`: a task that finds it in use waits until that is over, and then looks again.

*Deadlines.*  The connection below keeps them, but it knows of no call that does not wait for it.  One that waits for its
other direction, or for another task's turn, has a cancel scope with the deadline of its own direction, and a direction that
is lent like that has no deadline below meanwhile.  So a peer that does not read what TLS answers holds a receiver no longer
than a peer that does not send.

*Errors.*  One of the connection below stops its direction: what the peer had sent before a reset can be received.  One of
ssl's stops both.
"""

from __future__ import annotations

import abc
import errno
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._backends import closed_error, kept
from gain_trio._transports._connections import (
    NOTHING,
    Connection,
    FileTransfer,
    Inbound,
    Marks,
    checked_deadline,
)
from gain_trio._transports._time_slices import TimeSlice

from ._tls_engine import INTERRUPTED, OUT_OF_MEMORY, Engine, error_of_a_cut, is_cut_off

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK = 65536
"""The most that is decrypted at once."""
PIECE = 262144
"""The most that is encrypted at once: what is done for each piece costs a tenth of encrypting 64 KiB."""
ANSWERS = 65536
"""The most bytes of TLS's own that may be queued above the mark."""
CONTROL_ROOM = PIECE + ANSWERS
"""Above the mark: a piece encrypted just below the mark, and TLS's own messages."""
_SMALLEST_PIECE = 4096


def explained(error: OSError) -> str:
    """What an error of ssl's means."""
    if is_cut_off(error):
        return "the peer ended the stream without TLS's close_notify, so a part may be missing"
    return error.strerror or str(error)


def broken_tls(error: OSError) -> trio.BrokenResourceError:
    """What a call raises after this error of ssl's."""
    broken = trio.BrokenResourceError(f"the connection is broken: {explained(error)}")
    broken.__cause__ = error
    return broken


@final
class Exclusive:
    """An activity of one task at a time."""

    __slots__ = ("_over", "is_taken")

    def __init__(self) -> None:
        self.is_taken = False
        self._over: trio.Event | None = None

    async def wait(self) -> None:
        """Wait until the task that does it is done."""
        if self._over is None:
            self._over = trio.Event()
        await self._over.wait()

    @trio.lowlevel.enable_ki_protection  # it would stay taken for ever
    def end(self) -> None:
        self.is_taken = False
        over, self._over = self._over, None
        if over is not None:
            over.set()


class TlsTraffic(Connection):
    """The part of a TLS connection that moves bytes."""

    __slots__ = (
        "_answered",
        "_below",
        "_between",
        "_drain_deadline",
        "_drains",
        "_ended",
        "_engine",
        "_error",
        "_expects_close_notify",
        "_feeding",
        "_has_received_nothing",
        "_inbound",
        "_is_closed",
        "_is_send_incomplete",
        "_making_room",
        "_marks",
        "_piece",
        "_read_deadline",
        "_read_scope",
        "_reading_is_lent",
        "_receiving",
        "_room_inbound",
        "_send_error",
        "_time_slice",
        "_unencrypted",
        "_unencrypted_size",
        "_unyielded",
        "_write_deadline",
        "_write_scope",
        "_writing_is_lent",
    )

    _is_closed: bool
    _is_send_incomplete: bool
    _has_received_nothing: bool
    _transfer_type = FileTransfer  # the kernel's would not be encrypted

    def __init__(self, engine: Engine, below: Connection, marks: Marks, *, https_compatible: bool) -> None:
        self._engine = engine
        self._below = below
        self._marks = marks
        self._expects_close_notify = not https_compatible
        self._piece = max(min(PIECE, marks.send_high), _SMALLEST_PIECE)
        self._receiving = False  # a call of this direction is in progress
        self._inbound: Inbound = NOTHING
        self._ended = False
        self._error: OSError | None = None  # of ssl's: nothing goes in either direction after it
        self._send_error: OSError | None = None  # of the connection below
        self._is_closed = False
        self._has_received_nothing = True
        self._between = self._drains = False
        self._drain_deadline = None
        self._is_send_incomplete = False  # also while a send waits with a part of its data sent
        self._unencrypted: deque[bytes] = deque()  # what has to wait for the peer, in a renegotiation
        self._unencrypted_size = 0
        self._time_slice = TimeSlice()  # of calls that are answered by what is queued here
        self._unyielded = 0  # bytes sent since a task did so in a turn of its own
        self._answered = 0  # bytes of TLS's own handed down since it was known that less than the mark was there
        self._feeding = Exclusive()
        self._making_room = Exclusive()
        self._room_inbound: trio.Event | None = None  # for a sender that has received more than was asked for
        self._read_deadline = below.read_deadline
        self._write_deadline = below.write_deadline
        self._read_scope: trio.CancelScope | None = None  # of a call whose deadline is not kept below
        self._write_scope: trio.CancelScope | None = None
        self._reading_is_lent = False  # to a call that sends: there is no deadline below
        self._writing_is_lent = False  # to one that receives
        self._decrypt_fed()  # what came with the end of the handshake

    # --- what the rest of the connection brings ---

    @abc.abstractmethod
    def _arrived(self, data: bytes) -> None:
        """Queue it."""

    @abc.abstractmethod
    def _handed_down(self, count: int) -> None:
        """So much of the program's data was encrypted, and is outbound below."""

    @abc.abstractmethod
    def _wake_for_change(self) -> None:
        """Have the task in :meth:`_wait_change` look again."""

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error(self)

    # --- time ---

    @property
    def read_deadline(self) -> float:
        """See :attr:`Connection.read_deadline`."""
        return self._read_deadline

    @read_deadline.setter
    def read_deadline(self, deadline: float) -> None:
        self._read_deadline = checked_deadline(deadline)
        if not self._reading_is_lent:
            self._below.read_deadline = self._read_deadline
        if self._read_scope is not None:
            self._read_scope.deadline = self._read_deadline

    @property
    def write_deadline(self) -> float:
        """See :attr:`Connection.write_deadline`."""
        return self._write_deadline

    @write_deadline.setter
    def write_deadline(self, deadline: float) -> None:
        self._write_deadline = checked_deadline(deadline)
        if not self._writing_is_lent:
            self._below.write_deadline = self._write_deadline
        if self._write_scope is not None:
            self._write_scope.deadline = self._write_deadline

    async def _to_receive_in_time(self, wait: Awaitable[object]) -> None:
        """Await what the connection below does not time as receiving; the read deadline holds for it."""
        with trio.CancelScope(deadline=self._read_deadline) as scope:
            self._read_scope = scope
            try:
                await wait
            finally:
                self._read_scope = None
        if scope.cancelled_caught:
            self._check_open()
            raise trio.TooSlowError("the connection's read deadline has passed")

    async def _to_send_in_time(self, wait: Awaitable[object]) -> None:
        """The same of the write deadline."""
        with trio.CancelScope(deadline=self._write_deadline) as scope:
            self._write_scope = scope
            try:
                await wait
            finally:
                self._write_scope = None
        if scope.cancelled_caught:
            self._check_open()
            raise trio.TooSlowError("the connection's write deadline has passed")

    def _interrupt_calls(self) -> None:
        """It is closed, but the connection below is not yet."""
        for scope in (self._read_scope, self._write_scope):
            if scope is not None:
                scope.cancel()
        if not self._reading_is_lent:
            self._below.read_deadline = -math.inf

    # --- receiving ---

    def _begin_receiving(self) -> None:
        if self._is_closed:
            self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this connection")
        self._receiving = True

    @property
    def _is_held_up(self) -> bool:
        """Whether there is something else to wait for before anything can be received."""
        return self._feeding.is_taken or (
            self._answered >= ANSWERS and self._below.outbound_buffered >= self._marks.send_high
        )

    @trio.lowlevel.enable_ki_protection  # bytes received from below have no owner for a moment
    async def _feed(self, receive: Callable[[], Awaitable[bytes | None]]) -> None:
        """Decrypt what ``receive()`` brings from below, which may be nothing; or wait until another task has done that."""
        if self._feeding.is_taken:
            await self._feeding.wait()
            return
        self._feeding.is_taken = True
        try:
            while self._answered >= ANSWERS and self._send_error is None:
                if self._below.outbound_buffered < self._marks.send_high:
                    self._answered = 0
                else:
                    await self._make_room(lent=True)
            data = await receive()
            if data is not None:
                self._decrypt_received(data)
        finally:
            self._feeding.end()

    @property
    def _receives_at_once(self) -> bool:
        """Whether the next step is to receive from below, and there is nothing to look at before."""
        return not (self._feeding.is_taken or self._answered >= ANSWERS or self._ended or self._error is not None)

    @trio.lowlevel.enable_ki_protection  # see _feed()
    def _decrypt_received(self, data: bytes) -> None:
        """Have what has come from below decrypted."""
        if not self._is_closed or self._unencrypted:  # a close may wait for these to be
            try:
                self._engine.feed(data)
                self._decrypt_fed()
            except BaseException as error:  # what is lost would be missing in the midst of the stream
                self._fail(OUT_OF_MEMORY if isinstance(error, MemoryError) else INTERRUPTED)
                raise

    @trio.lowlevel.enable_ki_protection  # see _feed()
    def _decrypt_below(self, count: int) -> None:
        """Have ``count`` of the bytes that are queued below decrypted."""
        data = self._below.next(count)
        if data:  # a receive may have had them
            self._decrypt_received(data)

    async def _receive_below(self) -> bytes:
        return await self._below.receive(CHUNK)

    async def _receive_to_send(self) -> bytes:
        self._reading_is_lent = True
        self._below.read_deadline = math.inf
        try:
            return await self._below.receive(CHUNK)
        finally:
            self._reading_is_lent = False
            self._below.read_deadline = self._read_deadline

    def _decrypt_fed(self) -> None:
        """Queue what can be decrypted, and hand down what TLS says to it."""
        self._decrypted(self._engine.read())

    @trio.lowlevel.enable_ki_protection  # see _feed()
    def _decrypted(self, data: bytes) -> None:
        """The engine has decrypted this, and may have ended."""
        engine = self._engine
        if data:
            self._arrived(data)
        if engine.ended:
            self._ended = True
        if engine.error is not None:
            self._fail(engine.error)
        if self._unencrypted:
            self._encrypt_kept()
        if engine.has_outgoing:
            self._answered += self._hand_down()

    def _fail(self, error: OSError) -> None:
        """TLS has."""
        if self._error is None:
            self._error = error
        if is_cut_off(error) and not self._expects_close_notify:
            self._ended = True
        self._is_send_incomplete = self._drop_unencrypted() or self._is_send_incomplete
        self._wake_for_change()

    async def _pass(self) -> None:
        """A cancellation point, before an answer of what is queued here.

        It is a schedule point, too, when others are to have a turn.
        """
        if self._time_slice.is_over():
            await trio.lowlevel.checkpoint()
            self._check_open()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def _decrypt(self) -> bool:
        """Take a step towards more in the queue; False at the end of the stream."""
        self._time_slice.begin()  # the connection below has its own
        if self._ended or self._error is not None:
            await trio.lowlevel.checkpoint()
            self._check_open()
            if self._ended or self._error is None:
                return False
            raise broken_tls(self._error)
        try:
            if self._is_held_up:
                await self._to_receive_in_time(self._feed(self._receive_below))
            else:
                await self._feed(self._receive_below)
        except trio.TooSlowError:
            self._check_open()  # see _interrupt_calls()
            raise
        self._check_open()
        return True

    # --- sending ---

    def _put(self, data: bytes | memoryview) -> None:
        """Encrypt it and hand it down, or keep it until the peer allows that."""
        self._unyielded += len(data)
        if self._unencrypted:
            self._keep(data)
        else:
            self._encrypted(data, self._engine.write(data))

    @trio.lowlevel.enable_ki_protection  # see _feed()
    def _encrypted(self, data: Buffer, done: int) -> None:
        """The engine has encrypted ``done`` bytes of it, which are handed down, or has failed."""
        self._hand_down_encrypted(done)
        with memoryview(data).cast("B") as whole:
            if done < len(whole) and self._error is None:
                self._keep(whole[done:])

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep it as it is, to be encrypted when the peer allows that."""
        self._unencrypted.append(bytes(data))
        self._unencrypted_size += len(data)

    def _hand_down_encrypted(self, done: int) -> None:
        if self._engine.error is not None:
            self._fail(self._engine.error)
        if done or self._engine.has_outgoing:
            self._hand_down()
        if done:
            self._handed_down(done)

    def _encrypt_kept(self) -> None:
        while self._unencrypted:
            data = self._unencrypted[0]
            done = self._engine.write(data)
            self._hand_down_encrypted(done)
            if not self._unencrypted:
                return  # it has failed
            self._unencrypted_size -= done
            if done < len(data):
                self._unencrypted[0] = data[done:]
                return
            self._unencrypted.popleft()
        self._wake_sender()

    def _hand_down(self) -> int:
        """Queue below what TLS has to send, and return how much.

        That never waits, and no task is in a call below that it could disturb.
        """
        data = self._engine.take_outgoing()
        self._send_below(data)
        return len(data)

    @trio.lowlevel.enable_ki_protection  # see _feed()
    def _send_below(self, data: bytes) -> None:
        if self._send_error is None:
            try:
                self._below._send_nowait(data)
            except trio.BrokenResourceError as error:
                self._send_failed(error)
            except MemoryError:  # the records that follow would not fit to those before
                self._send_error = OUT_OF_MEMORY
                raise

    def _send_failed(self, error: trio.BrokenResourceError) -> None:
        assert isinstance(error.__cause__, OSError)
        self._send_error = error.__cause__.with_traceback(None)
        self._wake_for_change()

    async def _make_room(self, *, empty: bool = False, lent: bool = False) -> None:
        """Wait until less than the mark is queued below, or nothing is.

        It returns too early when sending has failed, and when another task has waited: look again.  Raises
        :exc:`trio.ClosedResourceError` and :exc:`trio.TooSlowError` as the connection below does; ``lent``: to a call that
        receives, for which the write deadline is none.
        """
        if self._making_room.is_taken:
            await self._making_room.wait()
            return
        self._making_room.is_taken = True
        if lent:
            self._writing_is_lent = True
            self._below.write_deadline = math.inf
        try:
            await (self._below.flush() if empty else self._below.wait_send_all_might_not_block())
        except trio.BrokenResourceError as error:
            self._send_failed(error)
        finally:
            if lent:
                self._writing_is_lent = False
                self._below.write_deadline = self._write_deadline
            self._making_room.end()

    @property
    def _sends_at_once(self) -> bool:
        """Whether a send has to wait for nothing."""
        mark = self._marks.send_high
        return not (
            self._unencrypted
            or self._making_room.is_taken
            or self._error is not None
            or self._send_error is not None
            or self._is_send_incomplete
            or self._unyielded >= mark
            or self._below.outbound_buffered >= mark
        )

    @property
    def _is_behind(self) -> bool:
        """Whether what the call in progress has sent was too much, or has failed."""
        mark = self._marks.send_high
        return (
            self._below.outbound_buffered >= mark
            or self._unyielded >= mark
            or bool(self._unencrypted)
            or self._error is not None
            or self._send_error is not None
        )

    async def _wait_outbound(self, mark: int, *, own_half: bool = False, is_slice_over: bool = False) -> None:
        """Wait until less than ``mark`` is outbound, and all of it encrypted.

        ``own_half``: the caller has sent a part itself, and goes on.  ``is_slice_over``: the caller has asked, and it is.
        """
        if is_slice_over or self._unyielded >= self._marks.send_high or self._time_slice.is_over():
            self._unyielded = 0
            await trio.lowlevel.checkpoint()
            self._time_slice.begin()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            self._check_sendable(own_half=own_half)
            if self._unencrypted:
                await self._to_send_in_time(self._feed_to_send())
            elif self._below.outbound_buffered < mark:
                return
            elif self._making_room.is_taken:
                await self._to_send_in_time(self._making_room.wait())
            else:
                await self._make_room(empty=mark == 1)

    async def _feed_to_send(self) -> None:
        """Receive, because TLS has to before it can encrypt; but no more than the mark allows."""
        if self._ended:
            self._fail(error_of_a_cut())
        elif len(self._inbound) < self._marks.receive_high:
            await self._feed(self._receive_to_send)
        else:
            if self._room_inbound is None:
                self._room_inbound = trio.Event()
            await self._room_inbound.wait()

    def _wake_sender(self) -> None:
        """One that waits for the program to take something has reason to look again."""
        if self._room_inbound is not None:
            self._room_inbound.set()
            self._room_inbound = None

    def _check_sendable(self, *, own_half: bool = False) -> None:
        """Raise why nothing can be sent any more."""
        if self._error is not None:
            raise broken_tls(self._error)
        if self._send_error is not None:
            raise broken_by(kept(self._send_error))
        if self._is_send_incomplete and not own_half:
            raise broken_by(OSError(errno.ECANCELED, "a send was cancelled when a part of its data had been sent"))

    def _drop_unencrypted(self) -> bool:
        """Returns whether there was some."""
        dropped = self._unencrypted_size > 0
        self._unencrypted.clear()
        self._unencrypted_size = 0
        self._wake_sender()
        return dropped

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`.  Encrypted bytes, which are a few more."""
        return self._below.outbound_buffered + self._unencrypted_size
