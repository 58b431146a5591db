"""The ring as a Python object: set-up, single operations, submit, wait, reap, close.

Work per message does not pass through this class: ``gain_trio._fastpath`` drives connections on the same ``struct
gt_ring``, which this class owns and whose address is :attr:`Ring.address`.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any, Final, final

import attrs

from gain_trio._kernel import (
    FULL_TIER,
    AcceptFlag,
    CompletionFlag,
    Feature,
    RegisterOp,
    RingUnavailable,
    Tier,
    check,
    load_error,
    ring_unavailable,
    uring,
)

from ._options import RingOptions

_MORE = int(CompletionFlag.MORE)
_NANOSECONDS = 1_000_000_000

PATIENCE: Final = 0.1
"""Seconds for which a ring that finds no memory tries again."""
PAUSE: Final = 0.005

Callback = Callable[[int, int], object]
"""The ring calls it with ``cqe->res`` and ``cqe->flags``."""


@final
@attrs.define(eq=False, slots=True)
class Operation:
    """A single operation, from prep to its final CQE."""

    key: int
    """The ``user_data`` of its completions."""
    _ring: Ring = attrs.field(repr=False)
    _callback: Callback = attrs.field(repr=False)
    _keep: object = attrs.field(repr=False, default=None)  # memory that the kernel reads

    def cancel(self, *, abandon: bool = False) -> None:
        """Ask the kernel to end the operation.

        The final completion still comes, with ``-ECANCELED`` unless the operation was faster.  With ``abandon`` the ring
        no longer calls the callback, and closes a descriptor that an abandoned accept still brings.  A full submission
        queue delays the cancel to the next submission and never drops it.
        """
        self._ring._cancel(self, abandon)


@final
@attrs.frozen
class Completion:
    """A completion of an operation: ``result`` is a count, a descriptor or a negative errno."""

    operation: Operation
    result: int
    flags: CompletionFlag

    @property
    def is_final(self) -> bool:
        """Whether this is the operation's last completion."""
        return not self.flags & CompletionFlag.MORE


@final
@attrs.frozen
class RingStatistics:
    """The counters of a ring since it was opened, and its present state."""

    submissions: int
    """SQEs that the kernel has accepted."""
    completions: int
    """CQEs reaped."""
    enter_calls: int
    """``io_uring_enter`` system calls."""
    overflows: int
    """How often the ring found the completion queue overflown.  The kernel keeps the completions; nothing is lost."""
    stale: int
    """Completions for a slot that was freed before: always 0."""
    operations_in_flight: int
    buffers: int
    """All provided buffers."""
    buffers_free: int
    """Provided buffers that the kernel can pick from."""
    registered_files: int
    """Descriptors whose files the ring holds by itself."""


def _patiently(attempt: Callable[[], int]) -> int:
    """Return the result of a call that allocates memory, trying again for a while when the kernel has none.

    The kernel frees the memory of a ring some milliseconds after the ring was closed (``io_ring_exit_work``), and counts
    it for the user's limit until then.  So a run that closely follows another one needs patience, not a higher limit.
    """
    end = time.monotonic() + PATIENCE
    while (result := attempt()) == -errno.ENOMEM and time.monotonic() < end:
        time.sleep(PAUSE)
    return result


@final
class Ring:
    """An io_uring.  It belongs to the thread that opens it.

    Raises:
      RingUnavailable: this process cannot use io_uring; the message says why, and what would help.
    """

    def __init__(self, options: RingOptions | None = None) -> None:
        if load_error is not None:
            raise RingUnavailable(load_error)
        self.options = options if options is not None else RingOptions()
        self._lib: Any = uring.lib
        self._ring: Any = uring.ffi.new("struct gt_ring *", {"fd": -1})
        self._key: Any = uring.ffi.new("uint64_t *")
        self._operations: dict[int, Operation] = {}
        self._closed = False
        self._has_eventfd = False
        self._current_cqe: Any = None  # of the callback that is running
        request = uring.ffi.new("struct gt_ring_options *")
        request.entries = self.options.entries
        request.completion_entries = self.options.completion_entries
        request.unwanted = int(self.options.unwanted)
        request.max_slots = self.options.max_slots
        try:  # from before it is opened, because a KeyboardInterrupt comes in between
            self._open(request)
        except BaseException:
            self._lib.gt_ring_close(self._ring)
            raise

    def __del__(self) -> None:
        """Release a ring that was dropped without being closed, for example by a KeyboardInterrupt before it had an owner.

        Operations in flight end with the ring, some time later; the memory that the kernel may touch until then is kept.
        """
        ring = getattr(self, "_ring", None)
        if ring is not None and ring.fd >= 0 and not ring.dead:
            if ring.in_flight:
                _LEAKED.append(list(self._operations.values()))
            self._lib.gt_ring_close(ring)

    def _open(self, request: object) -> None:
        result = _patiently(lambda: self._lib.gt_ring_open(self._ring, request))
        if result < 0:
            raise ring_unavailable(result)
        if FULL_TIER & ~self.features == Feature.BUFFER_RING:  # else no operation receives into them
            self._open_buffers()

    def _open_buffers(self) -> None:
        """Register provided buffers, consumed incrementally if the kernel can do that; none if it cannot (EINVAL)."""
        options = self.options
        if options.unwanted & Feature.BUFFER_RING:
            return
        for incremental in (True, False):
            if incremental and options.unwanted & Feature.BUFFER_INCREMENT:
                continue
            count = options.buffer_count or (32 if incremental else 256)
            size = options.buffer_size or (65536 if incremental else 16384)
            opening = functools.partial(self._lib.gt_buffers_open, self._ring, count, size, incremental)
            result = _patiently(opening)
            if result >= 0:
                return
            if result != -errno.EINVAL:
                raise ring_unavailable(result)

    # --- what it is ---

    @property
    def address(self) -> int:
        """The address of the ``struct gt_ring``, for ``gain_trio._fastpath``."""
        return int(uring.ffi.cast("uintptr_t", self._ring))

    @property
    def owners(self) -> object:
        """What an object that keeps :attr:`Ring.address` refers to.

        That is the ring, and the struct itself: when both are garbage, the garbage collector may take the ring apart first.
        """
        return self, self._ring

    @property
    def features(self) -> Feature:
        """The features of the kernel that the ring found and uses."""
        return Feature(self._ring.features)

    @property
    def tier(self) -> Tier:
        """``"full"`` if connections can run on the ring, ``"poll"`` if it can only wait for readiness."""
        return "poll" if FULL_TIER & ~self.features else "full"

    @property
    def fd(self) -> int:
        """The ring's file descriptor, -1 when closed."""
        return int(self._ring.fd)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called, or the ring was left to a parent process."""
        return self._closed or bool(self._ring.dead)

    def statistics(self) -> RingStatistics:
        """A snapshot of the ring's counters."""
        ring = self._ring
        return RingStatistics(
            submissions=ring.submissions,
            completions=ring.completions,
            enter_calls=ring.enters,
            overflows=ring.overflows,
            stale=ring.stale,
            operations_in_flight=ring.in_flight,
            buffers=ring.buffers.count,
            buffers_free=self._lib.gt_buffers_free(ring),
            registered_files=ring.files.count - ring.files.free_count,
        )

    # --- single operations ---

    def _start(self, result: int, callback: Callback, keep: object = None) -> Operation:
        check(result)
        operation = Operation(self._key[0], self, callback, keep)
        self._operations[operation.key] = operation
        return operation

    def nop(self, callback: Callback) -> Operation:
        """Complete with 0 at once."""
        return self._start(self._lib.gt_operation_nop(self._ring, self._key), callback)

    def poll(self, fd: int, events: int, callback: Callback, *, multishot: bool = False) -> Operation:
        """Complete with the current poll(2) events: once, or with ``multishot`` at every change until cancelled.

        Besides ``events``, the kernel always reports ``ERR``, ``HUP`` and ``RDHUP``.

        Raises:
          OSError: ``EPERM`` for a regular file or directory, ``EBADF``, as from epoll_ctl(2).
        """
        return self._start(self._lib.gt_operation_poll(self._ring, fd, events, multishot, self._key), callback)

    def accept(self, fd: int, callback: Callback) -> Operation:
        """Complete with a descriptor for each connection that arrives, until a cancel or an error ends the operation.

        The descriptors are non-blocking and close-on-exec, and belong to the callback.

        Raises:
          OSError: ``EOPNOTSUPP`` without :attr:`Feature.MULTISHOT_ACCEPT`.
        """
        flags = AcceptFlag.NONBLOCK | AcceptFlag.CLOEXEC
        return self._start(self._lib.gt_operation_accept(self._ring, fd, int(flags), self._key), callback)

    def receive(self, fd: int, callback: Callback) -> Operation:
        """Complete with each piece of data that arrives, in a provided buffer.

        The operation ends when it is cancelled, at the end of the data, or when no buffer is free.  Inside the callback
        :meth:`buffer_data` returns what arrived.

        Raises:
          OSError: ``EOPNOTSUPP`` on a ring of tier ``"poll"``.
        """
        return self._start(self._lib.gt_operation_recv(self._ring, fd, self._key), callback)

    def send(self, fd: int, data: bytes, callback: Callback, *, msg_flags: int = 0) -> Operation:
        """Complete with the number of bytes sent; ``data`` is kept alive until then."""
        pointer = uring.ffi.from_buffer(data)
        result = self._lib.gt_operation_send(self._ring, fd, pointer, len(data), msg_flags, self._key)
        return self._start(result, callback, pointer)

    def _cancel(self, operation: Operation, abandon: bool) -> None:
        if self.closed:
            return  # closing has cancelled everything
        if abandon:
            if operation._keep is not None:
                raise ValueError(
                    "a send reads memory until it has completed; cancel it and wait, but do not abandon it"
                )
            self._operations.pop(operation.key, None)
        result = self._lib.gt_operation_cancel(self._ring, operation.key, abandon)
        if result != -errno.ENOENT:  # ENOENT: the operation has ended already
            check(result)

    # --- submit, wait, reap ---

    def submit(self) -> None:
        """Submit the prepared operations without waiting."""
        check(self._lib.gt_ring_submit(self._ring))

    def enter(self, timeout: float) -> bool:
        """Submit, and wait at most ``timeout`` seconds for a completion (0: not at all, ``math.inf``).

        Returns whether the wait ended before the timeout.  A signal ends it too (after its Python handler has run).
        """
        if timeout == math.inf:
            nanoseconds = self._lib.GT_NO_TIMEOUT
        else:
            nanoseconds = max(0, int(timeout * _NANOSECONDS))
        result = self._lib.gt_ring_enter(self._ring, nanoseconds)
        if result == -errno.ETIME:
            return False
        if result != -errno.EINTR:
            check(result)
        return True

    def settle(self) -> None:
        """Submit, and have the kernel end the cancelled operations, so that they hold no file when this returns.

        If the kernel has no memory for the submission, the next :meth:`enter` does this.
        """
        if not self.closed:
            self._lib.gt_ring_settle(self._ring)

    def reap(self) -> list[Completion]:
        """Reap all completions, call their callbacks, and return them."""
        cqe = uring.ffi.new("struct io_uring_cqe *")
        slot = uring.ffi.new("struct gt_slot *")
        completions = []
        while self._lib.gt_ring_reap(self._ring, cqe, 1):
            if self._lib.gt_completion_is_nobodys(cqe):
                continue
            is_ours = self._lib.gt_slot_complete(self._ring, cqe, slot)
            operation = self._operations.get(cqe.user_data) if is_ours else None
            try:
                if operation is not None and not slot.abandoned:
                    self._current_cqe = cqe
                    completions.append(Completion(operation, cqe.res, CompletionFlag(cqe.flags & 0xFFFF)))
                    self.complete(cqe.user_data, cqe.res, cqe.flags)
                elif is_ours:
                    self._lib.gt_completion_discard(slot, cqe)
            finally:  # the buffer is the kernel's again, even if the callback has raised
                if cqe.flags & CompletionFlag.BUFFER:
                    self._lib.gt_buffers_recycle(uring.ffi.addressof(self._ring, "buffers"), cqe)
        return completions

    def buffer_data(self) -> bytes:
        """Return a copy of the data that came with the completion whose callback is running."""
        cqe = self._current_cqe
        buffers = uring.ffi.addressof(self._ring, "buffers")
        return bytes(uring.ffi.buffer(self._lib.gt_buffers_data(buffers, cqe), cqe.res))

    def complete(self, key: int, result: int, flags: int, is_descriptor: bool | int = False) -> None:
        """Call the callback of a completion that the proactor has reaped and counted."""
        operation = self._operations.get(key)
        if operation is None:  # abandoned between its completion and now
            if is_descriptor:
                os.close(result)
            return
        if not flags & _MORE:
            del self._operations[key]
        operation._callback(result, flags)

    # --- registration and closing ---

    def register_eventfd(self, eventfd: int) -> None:
        """Have every completion counted by an eventfd (Linux 5.2), which another thread can poll.

        It replaces the eventfd that was registered before, which may be the same one: each registration starts anew.
        """
        if self._has_eventfd:
            check(self._lib.gt_ring_register(self._ring, int(RegisterOp.UNREGISTER_EVENTFD), uring.ffi.NULL, 0))
            self._has_eventfd = False
        argument = uring.ffi.new("int *", eventfd)
        check(self._lib.gt_ring_register(self._ring, int(RegisterOp.EVENTFD), argument, 1))
        self._has_eventfd = True

    def close(self, *, patience: float = 5.0) -> int:
        """Cancel everything, wait at most ``patience`` seconds until nothing is in flight, and free all memory.

        Returns how many operations the kernel did not end: 0, unless something is very wrong; the memory that they may
        still touch is kept then.  Closing twice is fine.
        """
        if self.closed:
            return 0
        self._closed = True
        null = uring.ffi.NULL
        try:
            self._lib.gt_ring_drain(self._ring, int(patience * _NANOSECONDS), null, null)
        finally:
            left = self._ring.in_flight
            self._lib.gt_ring_close(self._ring)
        if left:
            _LEAKED.append(list(self._operations.values()))
        self._operations.clear()
        return int(left)

    def forget(self) -> None:
        """In the child of a fork, drop the parent's ring without touching it."""
        self._lib.gt_ring_forget(self._ring)


_LEAKED: list[list[Operation]] = []
"""Operations that outlived their ring, with the memory that the kernel may read: they are never freed."""
