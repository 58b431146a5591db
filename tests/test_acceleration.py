"""Pieces of Trio in C go in and come out, and nothing but the speed tells."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import pickle
import subprocess
import sys
import threading
import types
import weakref
from typing import Any

import outcome
import pytest
import trio
from support.accelerated import codes, functions, is_in, run, stream_pair
from support.collector import collecting_always
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint  # before anything is put in

import gain_trio
from gain_trio._acceleration import NAMES, PIECES, _core_seam, _pieces, _switch, describe, resolve
from gain_trio._acceleration._switch import Switch
from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

WATCHERS_ARE_TAKEN = """
import ctypes
import gain_trio

watch = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.py_object, ctypes.py_object, ctypes.py_object)(lambda *_: 0)
try:
    while True:
        ctypes.pythonapi.PyDict_AddWatcher(watch)
except RuntimeError:
    pass

async def main():
    return "it runs"

print(gain_trio.run(main, accelerate=True))
"""


def available() -> tuple[str, ...]:
    return tuple(info.name for info in describe(resolve(True)) if info.active)


def test_all_pieces_fit_here() -> None:
    """The table has this release of Trio and this Python; a release that it has not is tested for below."""
    assert available() == NAMES, describe(resolve(True))


def test_a_run_puts_in_and_takes_out_exactly() -> None:
    before = codes()
    objects = functions()
    inside: dict[str, types.CodeType] = {}

    async def main() -> None:
        inside.update(codes())
        assert functions() == objects
        assert all(info.active for info in gain_trio.backend_info().acceleration)

    run(True, main)
    assert all(inside[path] is not before[path] for path in before)
    after = codes()
    assert all(after[path] is before[path] for path in before)


def test_without_it_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    before = codes()

    async def main() -> None:
        assert all(code is before[path] for path, code in codes().items())
        assert not any(info.active for info in gain_trio.backend_info().acceleration)

    run(False, main)
    trio.run(main)
    assert codes() == before
    monkeypatch.setenv("GAIN_TRIO_ACCELERATE", "0")
    gain_trio.run(main)


def test_install_and_uninstall() -> None:
    before = codes()
    info = gain_trio.install(backend="trio", accelerate=True)
    assert [piece.name for piece in info.acceleration if piece.active] == list(available())
    try:
        assert all(is_in(function) for function in functions().values())
        gain_trio.install(backend="trio", accelerate=["checkpoints"])  # replaces the one before
        assert is_in(checkpoint)
        assert not is_in(trio.SocketStream.send_all)
    finally:
        gain_trio.uninstall()
    assert all(code is before[path] for path, code in codes().items())


def test_uses_are_counted() -> None:
    """A run within an install, and runs in two threads: the last one takes out."""
    before = codes()
    gain_trio.install(backend="trio", accelerate=True)

    async def main() -> None:
        await checkpoint()

    run(True, main)
    assert is_in(checkpoint)
    gain_trio.uninstall()
    assert codes() == before

    started, go_on = threading.Event(), threading.Event()

    async def other() -> None:
        await checkpoint()
        started.set()
        await trio.to_thread.run_sync(go_on.wait)
        for _ in range(100):
            await checkpoint()

    thread = threading.Thread(target=run, args=(True, other))
    thread.start()
    started.wait()
    run(True, main)
    assert is_in(checkpoint)
    trio.run(main)
    go_on.set()
    thread.join()
    assert codes() == before


@pytest.mark.parametrize(
    "names", [(name,) for name in NAMES] + [tuple(n for n in NAMES if n != name) for name in NAMES]
)
def test_pieces_go_in_by_themselves(names: tuple[str, ...]) -> None:
    received: list[bytes] = []

    async def main() -> None:
        active = {info.name for info in gain_trio.backend_info().acceleration if info.active}
        assert active == set(names)
        one, other = await stream_pair()

        async def echo() -> None:
            async for data in other:
                await other.send_all(data)
            await other.send_eof()

        async with one, other, trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for number in range(10):
                await one.send_all(b"%d" % number)
                received.append(await one.receive_some())
            with trio.move_on_after(0.001) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
            await one.send_eof()
            assert not await one.receive_some()

    run(names, main)
    assert received == [b"%d" % number for number in range(10)]


def test_what_a_program_has_imported_is_replaced_too() -> None:
    async def main() -> None:
        assert is_in(checkpoint)
        assert is_in(cancel_shielded_checkpoint)
        assert checkpoint is trio.lowlevel.checkpoint

    run(True, main)


def test_function_objects_are_what_they_were() -> None:
    def facts() -> list[tuple[Any, ...]]:
        return [
            (
                path,
                inspect.iscoroutinefunction(function),
                inspect.signature(function, follow_wrapped=False),
                function.__name__,
                function.__qualname__,
                function.__doc__,
                function.__code__.co_name,
                function.__code__.co_filename,
                function.__code__.co_firstlineno,
                function.__code__.co_freevars,
            )
            for path, function in functions().items()
        ]

    before = facts()

    async def main() -> list[tuple[Any, ...]]:
        assert pickle.loads(pickle.dumps(checkpoint)) is checkpoint
        return facts()

    assert run(True, main) == before


def test_a_call_that_is_not_awaited_warns() -> None:
    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="'checkpoint' was never awaited"):
            trio.lowlevel.checkpoint()  # type: ignore[unused-coroutine]  # noqa: ASYNC105  # that is the point
            gc.collect()

    run(True, main)


def test_keyboard_interrupt_protection_is_kept() -> None:
    from trio._core import _ki  # what it is about

    statuses: Any = getattr(_ki, "_CODE_KI_PROTECTION_STATUS_WMAP", None)
    if statuses is None:
        pytest.skip("in this Trio it does not hang on the code")

    def protection() -> dict[str, object]:
        found: dict[str, object] = {}
        for path, code in codes().items():
            try:
                found[path] = statuses[code]
            except KeyError:
                found[path] = None
        return found

    before = protection()

    async def main() -> dict[str, object]:
        return protection()

    assert run(True, main) == before
    assert any(before.values())


@pytest.mark.parametrize("value", ["0", "1", "", "step,tick", " sockets , streams "])
def test_the_environment_decides_what_the_program_leaves_open(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GAIN_TRIO_ACCELERATE", value)
    expected = {"0": (), "1": NAMES, "": resolve_default(), "step,tick": ("step", "tick")}.get(
        value, ("sockets", "streams")
    )
    assert resolve().names == expected
    assert resolve(True).names == NAMES
    assert resolve(False).names == ()


def resolve_default() -> tuple[str, ...]:
    return NAMES if gain_trio._acceleration._piece_choice.BY_DEFAULT else ()


def test_pieces_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"names 'speed'; the pieces are sockets, streams, "):
        run(("speed",), trio.sleep, 0)
    monkeypatch.setenv("GAIN_TRIO_ACCELERATE", "step,nothing")
    for call in (gain_trio.run, gain_trio.install):
        with pytest.raises(ValueError, match="GAIN_TRIO_ACCELERATE=step,nothing names 'nothing'"):
            call(trio.sleep, 0) if call is gain_trio.run else call()  # type: ignore[operator]


def test_a_trio_that_it_was_not_tested_with(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    table = {name: dict(entries) for name, entries in _switch.TESTED.items()}
    table["scopes"] = {}
    monkeypatch.setattr(_switch, "TESTED", table)
    monkeypatch.setattr(_switch, "_configure", dict)  # it is configured, once in a process
    monkeypatch.delenv(_switch.UNTESTED, raising=False)
    switch = Switch()
    before = codes()
    with caplog.at_level(logging.WARNING, logger="gain_trio"):
        names = switch.put_in(NAMES)
        switch.take_out(switch.put_in(NAMES))
    assert names == tuple(name for name in NAMES if name != "scopes")
    assert not is_in(functions()["run:CancelScope.__enter__"])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Trio's own code runs for scopes: Trio {trio.__version__} with Python ")
    assert "is not what it was tested with" in str(switch.refusal("scopes"))
    switch.take_out(names)
    assert codes() == before


def test_a_piece_that_needs_another(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: dict(entries) for name, entries in _switch.TESTED.items()}
    table["step"] = {}
    monkeypatch.setattr(_switch, "TESTED", table)
    monkeypatch.setattr(_switch, "_configure", dict)
    monkeypatch.delenv(_switch.UNTESTED, raising=False)
    switch = Switch()
    assert switch.refusal("tick") == "it is nothing without step"


@pytest.mark.parametrize("step", ["guards_of_outcomes", "_refusal", "forget_sources"])
def test_what_a_ctrl_c_has_ended_is_done_again(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The first run of a process finds out what this Trio allows, before Trio holds back what a Ctrl-C does."""

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    switch, before = Switch(), codes()
    with monkeypatch.context() as patched:
        patched.setattr(_switch, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            switch.put_in(NAMES)
    assert codes() == before
    names = switch.put_in(NAMES)
    assert names == available()
    switch.take_out(names)
    assert codes() == before


def test_a_trio_that_was_imported_anew_is_not_the_one_of_the_pieces() -> None:
    seam = _core_seam.CoreSeam()
    trio_core.configure("core", seam)  # the same one again
    seam.run_module = dict(seam.run_module)
    with pytest.raises(TypeError, match="it was imported anew"):
        trio_core.configure("core", seam)


class StaleModule:
    """The compiled module, as an older build of it would be."""

    def __init__(self, *missing: str, interface: int) -> None:
        self._missing = missing
        self.INTERFACE = interface

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(name)
        return getattr(trio_core, name)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (StaleModule("nursery_enter", interface=_pieces.INTERFACE), "has no nursery_enter()"),
        (StaleModule(interface=1), "has interface 1, not "),
    ],
)
def test_a_compiled_module_of_another_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: StaleModule, reason: str
) -> None:
    monkeypatch.setattr(_pieces, "trio_core", module)
    switch = Switch()
    before = codes()
    with caplog.at_level(logging.WARNING, logger="gain_trio"):
        assert switch.put_in(NAMES) == ()
    assert codes() == before
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "build it again" in record.getMessage()
    assert all(reason in str(switch.refusal(name)) for name in NAMES)


def test_the_compiled_module_is_of_this_version() -> None:
    assert trio_core.INTERFACE == _pieces.INTERFACE


def test_code_of_somebody_else_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    function = functions()["stream:SocketStream.receive_some"]
    original = function.__code__
    other = original.replace(co_name="wrapped_by_a_tracer")

    async def main() -> None:
        function.__code__ = other

    try:
        with caplog.at_level(logging.WARNING, logger="gain_trio"):
            run(True, main)
        assert function.__code__ is other
        assert "was replaced by another library" in caplog.text
    finally:
        function.__code__ = original
        # The switch believes that its own code is in; the next use sets that right.
        for swap in _switch.switch._swaps or ():
            if swap.function is function:
                swap.current = original


def test_no_run_is_kept_alive() -> None:
    seen: list[weakref.ref[Any]] = []

    async def main() -> None:
        one, other = await stream_pair()
        async with one, other:
            await one.send_all(b"x")
            await other.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpoint)
        seen.append(weakref.ref(trio.lowlevel.current_task()))
        seen.append(weakref.ref(trio.lowlevel.current_root_task()))  # type: ignore[arg-type]  # there is one

    run(True, main)
    for _ in range(3):
        gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_guest_mode() -> None:
    before = codes()
    todo: list[Any] = []
    arrived = threading.Condition()
    results: list[outcome.Outcome[Any]] = []

    def soon(function: Any) -> None:
        with arrived:
            todo.append(function)
            arrived.notify()

    async def main() -> str:
        assert is_in(checkpoint)
        one, other = await stream_pair()
        async with one, other, trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, b"guest")
            data = await other.receive_some()
        with trio.move_on_after(0.01):
            await trio.sleep_forever()
        return bytes(data).decode()

    gain_trio.start_guest_run(main, run_sync_soon_threadsafe=soon, done_callback=results.append, accelerate=True)
    while not results:
        with arrived:
            arrived.wait_for(lambda: todo)
            function = todo.pop(0)
        function()
    assert results[0].unwrap() == "guest"
    assert codes() == before


def test_a_guest_run_that_does_not_begin() -> None:
    before = codes()
    with pytest.raises(TypeError):
        gain_trio.start_guest_run(
            trio.sleep, 0, run_sync_soon_threadsafe=print, done_callback=print, clock=3, accelerate=True, instruments=7
        )  # type: ignore[arg-type]
    assert codes() == before


def test_every_piece_has_a_fingerprint_of_its_own() -> None:
    found = [piece.fingerprint() for piece in PIECES]
    assert len(set(found)) == len(PIECES)


def test_it_is_traced() -> None:
    """A trace function sees lines, and nothing goes wrong."""
    lines = 0

    def trace(_frame: types.FrameType, _event: str, _argument: object) -> Any:
        nonlocal lines
        lines += 1
        return trace

    async def main() -> bytes:
        one, other = await stream_pair()
        async with one, other, trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, b"x" * 10)
            return bytes(await other.receive_some())

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert run(True, main) == b"x" * 10
    finally:
        sys.settrace(before)
    assert lines > 100


def test_garbage_collections_all_the_time() -> None:
    async def child(number: int) -> None:
        with trio.move_on_after(1):
            await checkpoint()
        await trio.sleep(0.0001 * number)

    async def main() -> None:
        one, other = await stream_pair()

        async def echo() -> None:
            async for data in other:
                await other.send_all(data)

        async with one, other, trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for number in range(20):
                nursery.start_soon(child, number)
                await one.send_all(b"y" * 100)
                assert len(await one.receive_some()) == 100
            nursery.cancel_scope.cancel()

    with collecting_always():
        run(True, main)


def test_partial_functions_and_threads() -> None:
    async def add(one: int, other: int, into: list[int]) -> None:
        into.append(one + other)

    async def main() -> list[int]:
        into: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(add, 1, into=into), 2)
            nursery.start_soon(add, 3, 4, into)
        await trio.to_thread.run_sync(trio.from_thread.run, add, 5, 6, into)
        return sorted(into)

    assert run(True, main) == [3, 7, 11]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="older dicts have a version")
def test_other_libraries_watch_as_many_dicts_as_there_may_be() -> None:
    command = [sys.executable, "-c", WATCHERS_ARE_TAKEN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "it runs\n"
    assert "it would not notice that a program replaces functions of Trio" in done.stderr
