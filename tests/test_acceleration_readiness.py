"""``is_readable`` of a Trio socket means the same with Trio's own code and with the piece in C."""

from __future__ import annotations

import select
import socket
from typing import Any

import pytest
import trio
import trio.socket
from support.accelerated import run
from trio._socket import _SocketType

from gain_trio._acceleration import switch
from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]


@pytest.fixture(params=[False, True, ("readiness",)], ids=["trio", "accelerated", "alone"])
def pieces(request: pytest.FixtureRequest) -> bool | tuple[str, ...]:
    value: bool | tuple[str, ...] = request.param
    return value


def test_data_and_the_end_of_it(pieces: bool) -> None:
    async def main() -> list[bool]:
        one, other = trio.socket.socketpair()
        found = [one.is_readable()]
        with one:
            with other:
                await other.send(b"12")
                found.append(one.is_readable())
                await one.recv(1)
                found.append(one.is_readable())  # it has taken nothing
                await one.recv(1)
                found.append(one.is_readable())
                one.shutdown(socket.SHUT_RD)
                found.append(one.is_readable())
            found.append(one.is_readable())
        return found

    assert run(pieces, main) == [False, True, True, False, True, True]


def test_a_listener(pieces: bool) -> None:
    async def main() -> list[bool]:
        with trio.socket.socket() as listener, trio.socket.socket() as client:
            await listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            found = [listener.is_readable()]
            await client.connect(listener.getsockname())
            return [*found, listener.is_readable()]

    assert run(pieces, main) == [False, True]


def test_one_that_is_closed(pieces: bool) -> None:
    async def main() -> None:
        closed = trio.socket.socket()
        closed.close()
        with pytest.raises(ValueError, match=r"^file descriptor cannot be a negative integer \(-1\)$"):
            closed.is_readable()

    run(pieces, main)


def test_outside_a_run(pieces: bool) -> None:
    """It does not need one."""
    names = () if pieces is False else switch.put_in(("readiness",))
    try:
        one, other = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
        assert not one.is_readable()
        other._sock.send(b"1")  # type: ignore[attr-defined]  # as a thread may
        assert one.is_readable()
        for end in (one, other):
            end._sock.close()  # type: ignore[attr-defined]  # close() tells the run
    finally:
        switch.take_out(names)


def test_what_it_is_made_of_is_replaced(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    poll = select.poll

    def mine() -> object:
        asked.append(1)
        return poll()

    async def main() -> None:
        one, other = trio.socket.socketpair()
        with one, other:
            assert not one.is_readable()
            with monkeypatch.context() as patch:
                patch.setattr(select, "poll", mine)
                assert not one.is_readable()
            assert not one.is_readable()
            with monkeypatch.context() as patch:
                patch.setattr(_SocketType, "is_readable", lambda _self: 3)
                assert one.is_readable() == 3  # type: ignore[comparison-overlap]
            assert not one.is_readable()

    run(pieces, main)
    assert asked == [1]


def test_trio_gets_its_function_back() -> None:
    """The very same code object."""
    function: Any = _SocketType.is_readable
    before = function.__code__

    async def main() -> object:
        return function.__code__

    assert run(True, main) is not before
    assert function.__code__ is before
