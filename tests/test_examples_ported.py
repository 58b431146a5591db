"""The examples of servers made of callbacks, run for real."""

from __future__ import annotations

import http.client
import signal
import socket

import pytest
from support.examples import EXAMPLES, listening
from support.processes import TIMEOUT, connect, read_all, read_exactly, running

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

GET = b"GET /plaintext HTTP/1.1\r\nHost: here\r\n\r\n"


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


def test_http_by_callbacks_answers_every_request_in_order() -> None:
    with running(EXAMPLES / "callback_http.py") as program:
        address = listening(program)
        client = http.client.HTTPConnection(*address, timeout=TIMEOUT)
        for path, status in (("/plaintext", 200), ("/nothing", 404), ("/", 200)):
            client.request("GET", path, body=b"skipped")
            response = client.getresponse()
            assert response.status == status
            assert (response.read() == b"Hello, World!") is (status == 200)
        client.close()
        with connect(*address) as raw:
            raw.sendall(GET * 20 + GET[:10])
            raw.sendall(GET[10:-2] + b"Connection: close\r\n\r\n")
            received = read_all(raw)
        assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"Hello, World!") == 21
        with connect(*address) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            assert read_all(raw).startswith(b"HTTP/1.1 400 ")
        program.interrupt()
        assert program.end() == (0, "", "")
