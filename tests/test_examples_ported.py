"""The examples of servers made of callbacks, run for real."""

from __future__ import annotations

import http.client
import signal
import socket

import pytest
from support.examples import EXAMPLES, listening
from support.processes import TIMEOUT, connect, read_all, read_exactly, running

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]


def test_the_protocol_of_asyncio_answers_all_its_clients_and_says_goodbye() -> None:
    with running(EXAMPLES / "asyncio_protocol.py") as program:
        address = listening(program)
        with connect(*address) as first, connect(*address) as second:
            assert [program.line(), program.line()] == ["hello 127.0.0.1"] * 2
            first.sendall(b"set colour gr")
            first.sendall(b"een\nget nothing\n")
            assert read_exactly(first, 11) == b"ok\nunknown\n"
            second.sendall(b"get colour\ndance\n")
            assert read_exactly(second, 6) == b"green\n"
            assert read_exactly(second, 27).startswith(b"set NAME WORD")
            first.shutdown(socket.SHUT_WR)
            assert read_all(first) == b""
            assert program.line() == "goodbye"
            second.sendall(bytes(2000))
            assert read_all(second) == b"too long\n"
            assert program.line() == "goodbye"
            with connect(*address):
                assert program.line() == "hello 127.0.0.1"
                program.interrupt(signal.SIGTERM)
                assert program.end() == (0, "goodbye\n", "")


def test_http_by_callbacks_serves_until_a_signal() -> None:
    with running(EXAMPLES / "callback_http.py") as program:
        client = http.client.HTTPConnection(*listening(program), timeout=TIMEOUT)
        client.request("GET", "/plaintext")
        assert client.getresponse().read() == b"Hello, World!"
        client.close()
        program.interrupt()
        assert program.end() == (0, "", "")
