"""A function that a program sets in the place of one of Trio's is called as often as with Trio alone."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import outcome
import pytest
import trio
from support.accelerated import NAMES, run, stream_pair
from trio._core import _io_epoll, _run, _traps
from trio._util import ConflictDetector
from trio.testing import wait_all_tasks_blocked

from gain_trio._acceleration import PIECES, _core_seam
from gain_trio._acceleration._guards import guards, guards_of_outcomes
from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

PATIENCE = 20
VERSION_OFFSET = 48 * ctypes.sizeof(ctypes.c_void_p)
"""Where a class has the version of its attributes."""


# --- a program that comes through every piece ---


async def use_scopes() -> None:
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint_if_cancelled()
    await trio.lowlevel.cancel_shielded_checkpoint()
    with trio.CancelScope():
        with trio.CancelScope(deadline=trio.current_time() + PATIENCE, shield=True) as scope:
            scope.deadline += 1
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(PATIENCE), trio.fail_after(PATIENCE), trio.move_on_at(trio.current_time() + PATIENCE):
            await trio.sleep(0)  # noqa: ASYNC115  # a function of Trio, too
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.sleep_forever()


async def use_nurseries() -> None:
    event = trio.Event()

    async def child(number: int) -> int:
        if number:
            await event.wait()
        return number

    async def starting(task_status: trio.TaskStatus[int]) -> None:
        task_status.started(1)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(child, number)
        await nursery.start(starting)
        async with trio.open_nursery():
            pass
        event.set()


async def use_locks() -> None:
    for lock in (trio.Lock(), trio.StrictFIFOLock(), trio.Semaphore(1), trio.CapacityLimiter(1)):
        async with trio.open_nursery() as nursery:

            async def hold(lock: Any = lock) -> None:
                async with lock:
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(hold)
            nursery.start_soon(hold)
    condition = trio.Condition()
    lot = trio.lowlevel.ParkingLot()

    async def wait() -> None:
        async with condition:
            await condition.wait()
        await lot.park()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        async with condition:
            condition.notify_all()
        await wait_all_tasks_blocked()
        lot.unpark()
        lot.unpark_all()


async def use_channels() -> None:
    for size in (0, 1, 8):
        send, receive = trio.open_memory_channel[int](size)

        async def produce(send: trio.MemorySendChannel[int] = send) -> None:
            async with send:
                for number in range(4):
                    await send.send(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            assert await receive.receive() == 0
            assert [number async for number in receive] == [1, 2, 3]


async def use_sockets() -> None:
    one, other = await stream_pair()

    async def echo() -> None:
        async for data in other:
            await other.send_all(data)
        await other.aclose()

    async with trio.open_nursery() as nursery, one:
        nursery.start_soon(echo)
        for _ in range(2):
            await one.send_all(b"x")
            assert await one.receive_some(10) == b"x"
        await one.send_eof()
        assert await one.receive_some() == b""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recvfrom, 10)
            await wait_all_tasks_blocked()
            await sock.sendto(b"x", sock.getsockname())
            nursery.start_soon(sock.recvfrom_into, bytearray(10))
            await sock.sendto(b"x", 0, sock.getsockname())
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sock.recv, 10)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught


async def use_traps() -> None:
    task = trio.lowlevel.current_task()

    async def wake() -> None:
        trio.lowlevel.reschedule(task, outcome.Value(7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake)
        assert await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED) == 7


async def use_generators() -> None:
    async def count(numbers: int) -> AsyncIterator[int]:
        for number in range(numbers):
            await trio.lowlevel.checkpoint()
            yield number

    assert [number async for number in count(3)] == [0, 1, 2]
    begun = count(3)
    assert await begun.__anext__() == 0
    await begun.aclose()  # type: ignore[attr-defined]  # a generator, and not any iterator


async def use_all() -> None:
    with trio.fail_after(PATIENCE):
        for use in (use_scopes, use_nurseries, use_locks, use_channels, use_sockets, use_traps, use_generators):
            await use()


# --- replacing ---


class Calls:
    """What stands in the place of something of Trio's counts how often it is used."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.on = False

    def note(self, name: str) -> None:
        if self.on:
            self.count[name] += 1

    def wrap_function(self, function: Any, name: str) -> Any:
        @functools.wraps(function, assigned=("__name__", "__qualname__", "__module__"), updated=())
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.note(name)
            return function(*arguments, **options)

        del wrapper.__wrapped__
        return wrapper

    def wrap(self, found: Any, name: str) -> Any:
        """What is set in the place of ``found``, and does the same; None for what cannot be counted."""
        if isinstance(found, property):
            return property(*(getter and self.wrap_function(getter, name) for getter in (found.fget, found.fset)))
        if isinstance(found, classmethod | staticmethod):
            return type(found)(self.wrap_function(found.__func__, name))
        if isinstance(found, types.ModuleType):
            return _Module(found, self)
        if isinstance(found, type):
            return self.wrap_class(found, name)
        return self.wrap_function(found, name) if callable(found) else None

    def wrap_class(self, found: type, name: str) -> Any:
        calls = self

        class Counting(type):
            def __call__(cls, *arguments: Any, **options: Any) -> Any:
                calls.note(name)
                return found(*arguments, **options)

            def __instancecheck__(cls, instance: object) -> bool:
                return isinstance(instance, found)

            def __getattribute__(cls, attribute: str) -> Any:
                return getattr(found, attribute)

        return types.new_class(found.__name__, (), {"metaclass": Counting})


class _Module(types.ModuleType):
    """A module with the names of another one, which counts how often each is looked up."""

    def __init__(self, module: types.ModuleType, calls: Calls) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _calls=calls)

    def __getattr__(self, name: str) -> Any:
        self.__dict__["_calls"].note(name)
        return getattr(self.__dict__["_module"], name)


BY_IDENTITY = {"Abort", "CancelShieldedCheckpoint", "Lock", "WaitTaskRescheduled", "_NoStatus"}
"""What Trio compares with, so that it does not work with anything else in its place."""


def is_replaceable(namespace: Any, name: str, found: object) -> bool:
    """What a program might replace in a class or in a module of Trio."""
    if name in BY_IDENTITY:
        return False
    if not isinstance(namespace, types.ModuleType):
        return isinstance(found, types.FunctionType | property | classmethod | staticmethod)
    if isinstance(found, types.ModuleType):  # but for a package's own
        return not found.__name__.startswith(f"{namespace.__name__}.")
    if isinstance(found, type):
        return not issubclass(found, BaseException)
    return isinstance(found, types.FunctionType | types.BuiltinFunctionType)


def spaces() -> dict[str, Any]:
    """The modules whose functions the pieces stand for, and the classes of these modules."""
    paths = [path for piece in PIECES for path in (*(part.path for part in piece.parts), *piece.stands_for)]
    modules = {_core_seam._PLACES[path.removeprefix("?").partition(":")[0]] for path in paths} | {_traps}
    found: dict[str, Any] = {}
    for module in modules:
        assert isinstance(module, types.ModuleType)
        found[module.__name__] = module
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                found[f"{module.__name__}.{value.__qualname__}"] = value
    return dict(sorted(found.items()))


SPACES = spaces()


@contextlib.contextmanager
def replaced(space: Any, name: str, calls: Calls) -> Iterator[None]:
    found = vars(space)[name]
    calls.on = True
    setattr(space, name, calls.wrap(found, name))
    try:
        yield
    finally:
        setattr(space, name, found)
        calls.on = False


def count(pieces: bool, main: Callable[[Calls], Any]) -> dict[str, int]:
    """How often what was replaced is used, with the tasks in the same order each time."""
    calls = Calls()
    _run._r.seed(0)  # type: ignore[attr-defined]  # where Trio has its random numbers
    run(pieces, main, calls, backend="trio")
    return dict(calls.count)


@pytest.mark.slow
@pytest.mark.parametrize("title", SPACES)
def test_what_is_replaced_in_a_class_or_a_module(title: str) -> None:
    """Each function, property, class and imported module, one after the other, in a run that is going on."""
    space = SPACES[title]
    differences = []
    for name in [name for name, found in vars(space).items() if is_replaceable(space, name, found)]:

        async def main(calls: Calls, name: str = name) -> None:
            await use_scopes()
            with replaced(space, name, calls):
                await use_all()
            assert all(trio_core.is_intact(piece) for piece in NAMES)

        by_trio, in_c = count(False, main), count(True, main)
        if by_trio != in_c:
            differences.append((name, by_trio, in_c))
    assert differences == []


def test_the_list_is_of_what_it_should_be() -> None:
    """The functions that are replaced above are called at all, and the guards know them."""
    assert "trio._core._io_epoll.EpollIOManager" in SPACES
    of_pieces = [guard for piece in PIECES for guard in guards(piece)]
    found = {
        f"{guard.namespace.__name__}.{name}" for guard in (*of_pieces, *guards_of_outcomes()) for name in guard.values
    }
    for expected in (
        *("Runner.reschedule", "Runner.spawn_impl", "Task._activate_cancel_status", "CancelScope._close"),
        *("EpollIOManager.get_events", "EpollIOManager._update_registrations", "_SocketType._nonblocking_helper"),
        *("MemorySendChannel.send_nowait", "Lock.acquire_nowait", "ParkingLot.park", "Nursery._child_finished"),
        *("trio._core._run.current_task", "trio._core._run.copy_context", "trio._core._run.Value", "Value.__init__"),
    ):
        assert expected in found


@pytest.mark.parametrize("name", ["get_events", "process_events", "_update_registrations", "_epoll_wait"])
def test_methods_of_the_io_manager(name: str) -> None:
    """What this is about: they are replaced when an accelerated run has been and gone."""
    run(True, use_all, backend="trio")

    async def main(calls: Calls) -> None:
        with replaced(_io_epoll.EpollIOManager, name, calls):
            await use_sockets()

    in_c = count(True, main)
    assert in_c[name] > 3
    assert in_c == count(False, main)


def test_in_the_middle_of_a_batch() -> None:
    """The tasks that are stepped after the one that replaces something are stepped by Trio's loop."""

    async def main(calls: Calls) -> None:
        with contextlib.ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                for number in range(8):

                    async def step(number: int = number) -> None:
                        await trio.lowlevel.checkpoint()
                        if number == 3:
                            stack.enter_context(replaced(_run.Runner, "reschedule", calls))
                        await trio.lowlevel.checkpoint()

                    nursery.start_soon(step)

    for _ in range(3):
        in_c = count(True, main)
        assert 0 < in_c["reschedule"] < 16
        assert in_c == count(False, main)


@pytest.mark.skipif(
    sys.version_info >= (3, 11), reason="clearing the cache does not make versions of classes begin again"
)
def test_a_class_that_gets_the_version_it_had_before() -> None:
    """The method is replaced after the cache of types was cleared, and then as many classes are used as there were."""

    def version(of: type) -> int:
        return ctypes.c_uint.from_address(id(of) + VERSION_OFFSET).value

    async def main() -> None:
        assert trio_core.is_intact("scopes")
        before = version(_run.CancelScope)
        sys._clear_type_cache()
        assert version(_run.CancelScope) == 0
        with replaced(_run.CancelScope, "_close", Calls()):
            others: list[type] = []
            while not others or version(others[-1]) < before - 1:
                others.append(type("Other", (), {}))
                hasattr(others[-1], "attribute")
            hasattr(_run.CancelScope, "attribute")
            assert version(_run.CancelScope) == before
            assert not trio_core.is_intact("scopes")
        assert trio_core.is_intact("scopes")

    run(True, main)


# --- attributes of one object ---


async def use_nursery(calls: Calls, name: str) -> None:
    async with trio.open_nursery() as nursery:
        setattr(nursery, name, calls.wrap(getattr(nursery, name), name))
        nursery.start_soon(trio.lowlevel.checkpoint)


async def use_stream(calls: Calls, name: str) -> None:
    one, other = await stream_pair()
    target = one if hasattr(one, name) else one.socket
    setattr(target, name, calls.wrap(getattr(target, name), name))
    async with one, other:
        await one.send_all(b"x")
        await other.send_all(b"x")
        await other.send_eof()
        assert [data async for data in one] == [b"x"]


async def use_datagrams(calls: Calls, name: str) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        setattr(sock, name, calls.wrap(getattr(sock, name), name))
        await sock.sendto(b"x", sock.getsockname())
        await sock.recvfrom(10)
        await sock.connect(sock.getsockname())
        await sock.send(b"y")
        await sock.recv(10)


async def use_lock(calls: Calls, name: str) -> None:
    lock = trio.Lock()
    setattr(lock, name, calls.wrap(getattr(lock, name), name))
    async with lock:
        pass
    await lock.acquire()
    lock.release()


async def use_channel(calls: Calls, name: str) -> None:
    send, receive = trio.open_memory_channel[int](2)
    target: Any = send if hasattr(send, name) else receive
    setattr(target, name, calls.wrap(getattr(target, name), name))
    async with send:
        await send.send(1)
        await send.send(2)
    assert await receive.receive() == 1
    assert [number async for number in receive] == [2]


@pytest.mark.parametrize(
    ("use", "name"),
    [
        *((use_nursery, name) for name in ("_child_finished", "_nested_child_finished", "_check_nursery_closed")),
        *((use_nursery, name) for name in ("start_soon", "_add_exc")),
        *((use_stream, name) for name in ("receive_some", "send_all", "recv", "send", "_nonblocking_helper")),
        *((use_datagrams, name) for name in ("sendto", "recvfrom", "_nonblocking_helper", "_resolve_address_nocp")),
        *((use_lock, name) for name in ("acquire", "acquire_nowait", "release")),
        *((use_channel, name) for name in ("send", "send_nowait", "receive", "receive_nowait")),
    ],
)
def test_what_is_replaced_in_an_object(use: Callable[[Calls, str], Any], name: str) -> None:
    async def main(calls: Calls) -> None:
        calls.on = True
        await use(calls, name)

    in_c = count(True, main)
    assert in_c == count(False, main)
    assert in_c or name == "_add_exc"


# --- classes of one's own ---


def test_a_manager_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager(_io_epoll.EpollIOManager):
        def get_events(self, timeout: float) -> Any:
            found.note("get_events")
            return super().get_events(timeout)

        def _update_registrations(self, fd: int) -> None:
            found.note("_update_registrations")
            super()._update_registrations(fd)

    async def main(calls: Calls) -> None:
        nonlocal found
        found = calls
        calls.on = True
        await use_sockets()

    found = Calls()
    monkeypatch.setattr(_run, "TheIOManager", Manager)
    in_c = count(True, main)
    assert in_c == count(False, main)
    assert min(in_c["get_events"], in_c["_update_registrations"]) > 3


def test_a_clock_of_ones_own() -> None:
    class Clock(_run.SystemClock):
        def current_time(self) -> float:
            found.note("current_time")
            return super().current_time()

    async def main(calls: Calls) -> None:
        nonlocal found
        found = calls
        calls.on = True
        await use_scopes()

    found = Calls()
    counts = []
    for pieces in (True, False):
        _run._r.seed(0)  # type: ignore[attr-defined]
        calls = Calls()
        run(pieces, main, calls, backend="trio", clock=Clock(offset=0.0))  # type: ignore[call-arg]
        counts.append(dict(calls.count))
    assert counts[0] == counts[1]
    assert counts[0]["current_time"] > 3


def test_a_detector_of_conflicts_of_ones_own() -> None:
    class Detector(ConflictDetector):
        def __enter__(self) -> None:
            found.note("__enter__")
            super().__enter__()

    async def main(calls: Calls) -> None:
        nonlocal found
        found = calls
        calls.on = True
        one, other = await stream_pair()
        async with one, other:
            one._send_conflict_detector = Detector("busy")
            await one.send_all(b"x")

    found = Calls()
    assert count(True, main) == count(False, main) == {"__enter__": 1}
