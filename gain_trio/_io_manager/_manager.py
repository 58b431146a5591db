"""The I/O manager, by which a Trio run waits.

Trio's run loop calls its I/O manager twice a tick, ``get_events(timeout)`` and then ``process_events(events)``, and
offers its readiness calls (``wait_readable`` and the like) to programs.  Everything below follows from four facts.

*Submissions ride on the wait.*  Preparing an operation only fills a place in the submission queue; the one
``io_uring_enter`` of the next ``get_events`` submits all of them, waits, and runs the deferred work that makes completions.
So an operation started while tasks run costs no system call of its own, and the kernel never executes an operation that
is cancelled before the tick is over.

*A poll is an operation on the file, not on the number.*  ``wait_readable(fd)`` is one POLL_ADD (poll.c).  It holds a
reference to the open file until its final completion: closing the descriptor does not end the poll, and during the poll
the socket stays open for the peer and for another ``bind``.  That is why ``notify_closing`` cancels, and has the kernel
end the poll before it returns.  The cancel names the operation's key, so it is right even if the program has closed or
reused the descriptor since.

*get_events is falsy if and only if the timeout expired.*  ``MockClock`` jumps and ``wait_all_tasks_blocked`` returns when
a wait returns empty.  Housekeeping completions (a cancel's acknowledgement, the end of an abandoned poll) therefore
neither count nor end the wait; ``Proactor.wait`` ensures that.

*The ring serves one thread.*  In guest mode Trio calls ``get_events(0)`` in the host's thread and, when that returns
empty, ``get_events(timeout)`` in a worker.  The worker cannot enter the ring (``EEXIST``), and a ring with deferred work
does not wake a poll of its own descriptor.  It does count its completions on a registered eventfd, so the worker polls
that, and whatever arrived is reaped by ``process_events``, back in the host's thread.  Without deferred work (tier
``"poll"``) completions are made by the host's thread whenever it is in the kernel, asleep there or not, and counted as well.

The kernel counts a completion late if a write to another eventfd has caused it, because eventfds may not signal each
other, and since Linux 6.11 it does so only once: ``__io_eventfd_signal`` (io_uring/eventfd.c) sets a mark that a late
signal is on its way, and nothing clears the mark.  So the worker polls the eventfd of ``force_wakeup`` itself.  For the
eventfds that programs wait for, the manager renews the registration with each tick of the guest: a new one has no such
mark.  Before Linux 5.18 a renewal was unnecessary, and it waited for all operations to end (``io_ring_quiesce``).
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import select
import threading
import weakref
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Literal, final

import attrs
import outcome
import trio

from gain_trio._kernel import PollEvent, Tier, fastpath, kernel_version, ring_unavailable
from gain_trio._ring import Ring, RingOptions

from ._seam import RunSeam
from ._stream_errors import broken

if TYPE_CHECKING:
    from trio._file_io import _HasFileNo  # only for the signature that Trio's own managers have

    from gain_trio._fastpath import Poll

_READ, _WRITE = int(PollEvent.IN), int(PollEvent.OUT)
_RETRY_SECONDS = 0.01  # after which a guest run submits again what the kernel has not taken
_RESUME_VARIABLE = "GAIN_TRIO_RESUME_IN_PLACE"


@final
@attrs.frozen
class UringStatistics:
    """The value of ``trio.lowlevel.current_statistics().io_statistics`` on the ring."""

    tasks_waiting_read: int
    """Tasks in ``wait_readable``."""
    tasks_waiting_write: int
    """Tasks in ``wait_writable``."""
    connections: int
    """Connections that are open, or closed with operations that the kernel has not ended yet."""
    endpoints: int
    """Datagram endpoints, likewise."""
    submissions: int
    """Operations submitted to the kernel so far."""
    completions: int
    """Completions reaped so far."""
    enter_calls: int
    """``io_uring_enter`` system calls so far."""
    overflows: int
    """How often the ring found the completion queue overflown.  The kernel keeps the completions; nothing is lost."""
    starvations: int
    """How often a receive ended because no buffer was free.  The ring re-arms it, and nothing is lost."""
    uncopied_pieces: int
    """How often large data that was received has become a bytes object without being copied."""
    buffers: int
    """All receive buffers, less the bytes objects that large data is received into."""
    buffers_free: int
    """Receive buffers that the kernel can pick from."""
    registered_files: int
    """Connections that send often, whose sockets the ring holds by itself (``Feature.REGISTERED_FILES``)."""
    operations_in_flight: int
    """Operations that the kernel has not completed yet."""
    resumed_in_place: int
    """Tasks of connections and endpoints that the ring resumed at once when it reaped their completion."""
    rescheduled: int
    """Tasks woken by Trio's scheduler: all that wait for readiness, and others where ``resume_in_place`` is off."""
    tier: Tier
    """``"full"`` if connections run on the ring, ``"poll"`` if the ring only waits for readiness."""
    backend: Literal["io_uring"] = attrs.field(init=False, default="io_uring")


def resume_in_place_default() -> bool:
    """The operator's choice: ``GAIN_TRIO_RESUME_IN_PLACE=0`` sends every wake-up through Trio's scheduler."""
    value = os.environ.get(_RESUME_VARIABLE) or "1"  # set to nothing is not set
    if value not in ("0", "1"):
        raise ValueError(f"{_RESUME_VARIABLE} must be 0 or 1, not {value!r}")
    return value == "1"


class UringIOManager:
    """Trio's I/O manager on io_uring, made in the thread of the run.

    Raises:
      RingUnavailable: this process cannot use io_uring.
    """

    default_options: ClassVar[RingOptions | None] = None
    """The options that :func:`gain_trio.install` has set; None for those of the environment."""
    default_resume_in_place: ClassVar[bool | None] = None
    is_demanded = False
    """Whether the program or the operator requires the ring; otherwise a run without one uses Trio's own manager."""

    def __init__(self, options: RingOptions | None = None, *, resume_in_place: bool | None = None) -> None:
        if resume_in_place is None:
            resume_in_place = self.default_resume_in_place
        if resume_in_place is None:
            resume_in_place = resume_in_place_default()
        self.resume_in_place = resume_in_place
        self.ring = Ring(options if options is not None else self.default_options)
        self.tier: Tier = self.ring.tier
        try:
            self.proactor = fastpath.Proactor(
                self.ring.address,
                self.ring.owners,
                broken,
                trio.ClosedResourceError,
                trio.BusyResourceError,
                trio.TooSlowError,
                resume_in_place,
            )
        except BaseException as error:
            self.ring.close()
            if isinstance(error, OSError):  # the ring has used the last free descriptor
                raise ring_unavailable(error.errno or 0) from error
            raise
        self._thread = threading.get_ident()
        self._seam: RunSeam | None = None
        self.readers: dict[int, Poll] = {}
        self.writers: dict[int, Poll] = {}
        self._waiters = {_READ: self.readers, _WRITE: self.writers}
        self._closed = False
        self._completion_eventfd: int | None = None  # guest mode only: counts completions for the worker
        _living.add(self)

    def _watch_wakeup(self) -> None:
        self.ring.poll(self.proactor.wakeup_descriptor, _READ, self._woken)

    def _woken(self, _result: int, _flags: int) -> None:
        _drain_eventfd(self.proactor.wakeup_descriptor)
        self._watch_wakeup()

    def _bind(self) -> None:
        """Bind the manager to its run, which does not exist yet when Trio calls the constructor."""
        self._seam = RunSeam()
        self.proactor.bind(self._seam)
        if self._seam.is_guest:
            self._completion_eventfd = self.proactor.count_completions()
            self.ring.register_eventfd(self._completion_eventfd)
        else:
            self._watch_wakeup()

    # --- what Trio's run loop calls ---

    def statistics(self) -> UringStatistics:
        """A snapshot of the manager's and the ring's counters."""
        ring = self.ring.statistics()
        # list() copies in one step: another thread may call this while tasks begin and end to wait.
        return UringStatistics(
            tasks_waiting_read=sum(poll.waits for poll in list(self._waiters[_READ].values())),
            tasks_waiting_write=sum(poll.waits for poll in list(self._waiters[_WRITE].values())),
            connections=self.proactor.connections,
            endpoints=self.proactor.endpoints,
            submissions=ring.submissions,
            completions=ring.completions,
            enter_calls=ring.enter_calls,
            overflows=ring.overflows,
            starvations=self.proactor.starvations,
            uncopied_pieces=self.proactor.uncopied_pieces,
            buffers=ring.buffers,
            buffers_free=ring.buffers_free,
            registered_files=ring.registered_files,
            operations_in_flight=ring.operations_in_flight,
            resumed_in_place=self.proactor.resumed_in_place,
            rescheduled=self.proactor.rescheduled,
            tier=self.tier,
        )

    def close(self) -> None:
        """Close every connection, end every operation and close the ring, at the end of the run.

        The garbage collector may call this in another thread than the run's, for a guest run that its host has abandoned.
        """
        if self._closed:
            return
        self._closed = True
        if self.ring.closed:  # in the child of a fork
            return
        try:
            self.proactor.close()
        finally:
            self.ring.close()

    def force_wakeup(self) -> None:
        """End the wait in progress, or the next one.  Any thread and any signal handler may call this.

        After :meth:`close` there is no wait to end.  Trio calls this even so, when the tasks of an abandoned guest run are
        garbage collected, and by then the descriptor's number may belong to another file.
        """
        descriptor = self.proactor.wakeup_descriptor
        if descriptor >= 0:
            os.eventfd_write(descriptor, 1)

    def get_events(self, timeout: float) -> int | bool:
        """Wait at most ``timeout`` seconds for events.  Falsy if and only if the timeout expired."""
        if threading.get_ident() != self._thread:
            return self._wait_in_worker(timeout)
        if self._seam is None:
            self._bind()
        return self.proactor.wait(timeout)

    def _wait_in_worker(self, timeout: float) -> bool:
        """Wait in guest mode, in a thread that cannot enter the ring but can poll the count of its completions."""
        assert self._completion_eventfd is not None
        poll = select.poll()
        poll.register(self._completion_eventfd, select.POLLIN)
        poll.register(self.proactor.wakeup_descriptor, select.POLLIN)
        is_held_up = timeout > _RETRY_SECONDS and self.proactor.has_unsubmitted  # by a kernel without memory, say
        ready = poll.poll(ceil((_RETRY_SECONDS if is_held_up else timeout) * 1000))
        return is_held_up or bool(ready)

    def process_events(self, events: object) -> None:  # noqa: ARG002  # the proactor has them
        """Resume and reschedule the tasks that the last wait found ready."""
        if self._seam is None:  # a guest run makes its first ticks without a wait
            self._bind()
        if self._completion_eventfd is not None:
            if _renews_eventfd():
                self.ring.register_eventfd(self._completion_eventfd)
            _drain_eventfd(self.proactor.wakeup_descriptor)
            _drain_eventfd(self._completion_eventfd)
            self.proactor.wait(0)  # after the renewal, because it reaps what the eventfd has not counted
        completions = self.proactor.process()
        if completions is not None:
            self.complete(completions)

    def complete(self, completions: list[tuple[int, int, int, int]]) -> None:
        """Hand over what the proactor's ``process()`` returns: the completions of single operations.

        An accelerated tick calls ``wait()`` and ``process()`` of the proactor itself, and then this.
        """
        complete = self.ring.complete
        for key, result, flags, is_descriptor in completions:
            complete(key, result, flags, is_descriptor)

    # --- what programs call, by way of trio.lowlevel ---

    async def wait_readable(self, fd: int | _HasFileNo) -> None:
        """See :func:`trio.lowlevel.wait_readable`."""
        await self._wait(fd, _READ)

    async def wait_writable(self, fd: int | _HasFileNo) -> None:
        """See :func:`trio.lowlevel.wait_writable`."""
        await self._wait(fd, _WRITE)

    async def _wait(self, fd: int | _HasFileNo, direction: int) -> None:
        if not isinstance(fd, int):
            fd = fd.fileno()
        poll = self.poll(fd, direction)
        try:
            await poll
        finally:
            waiters = self._waiters[direction]
            if waiters.get(fd) is poll:
                del waiters[fd]

    def poll(self, fd: int, events: int) -> Poll:
        """The awaitable of a task that waits for readiness.

        Accelerated sockets of Trio await one that they take from the proactor themselves.
        """
        return self.proactor.poll(self._waiters[events], fd, events, False)

    def notify_closing(self, fd: int | _HasFileNo) -> None:
        """See :func:`trio.lowlevel.notify_closing`."""
        if not isinstance(fd, int):
            fd = fd.fileno()
        for waiters in self._waiters.values():
            poll = waiters.pop(fd, None)
            task = None if poll is None else poll.stop()
            if task is not None:
                error = trio.ClosedResourceError("another task closed this fd")
                trio.lowlevel.reschedule(task, outcome.Error(error))
        self.proactor.settle()  # ends also a wait that was cancelled in this turn and has left the table

    # --- fork ---

    def _forget(self) -> None:
        self.proactor.forget()
        self.ring.forget()


@functools.cache
def _renews_eventfd() -> bool:
    """Whether a guest run on this kernel needs to register its eventfd again, at times, and may."""
    version = kernel_version(platform.release())
    return version is None or version >= (5, 18)


def _drain_eventfd(eventfd: int) -> None:
    try:
        os.eventfd_read(eventfd)
    except OSError as error:
        if error.errno != errno.EAGAIN:  # EAGAIN: drained already
            raise


_living: weakref.WeakSet[UringIOManager] = weakref.WeakSet()


def _forget_all() -> None:
    for manager in list(_living):
        manager._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
