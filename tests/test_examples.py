"""The examples, run for real."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets.sync.client
from support.certificates import certificate, client_context
from support.examples import EXAMPLES, listening
from support.processes import TIMEOUT, connect, read_all, read_exactly, run, running

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

LARGE = bytes(range(256)) * 8192  # 2 MiB: more than the marks and the socket buffers hold


@contextlib.contextmanager
def upstream() -> Iterator[tuple[str, socket.socket]]:
    """A listening socket of the test's own, for the proxy to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", listener


def accept(listener: socket.socket) -> socket.socket:
    """The connection that the proxy makes."""
    served, _address = listener.accept()
    served.settimeout(TIMEOUT)
    return served


def send_and_read(client: socket.socket, data: bytes) -> bytes:
    """Send all and half-close while reading everything: neither side may wait for the other."""

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return read_all(client)
    finally:
        sender.join(TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_echo_answers_every_client_and_ends_on_a_signal(number: signal.Signals) -> None:
    with running(EXAMPLES / "echo.py") as program:
        address = listening(program)
        with connect(*address) as first, connect(*address) as second:
            first.sendall(b"one")
            second.sendall(b"two")
            assert read_exactly(second, 3) == b"two"
            assert read_exactly(first, 3) == b"one"
            assert send_and_read(first, LARGE) == LARGE
            program.interrupt(number)  # second is still open
            assert program.end() == (0, "", "")


def test_echo_listens_where_it_is_told() -> None:
    with running(EXAMPLES / "echo.py", "tcp://127.0.0.2:0") as program:
        host, port = listening(program)
        assert host == "127.0.0.2"
        with connect(host, port) as client:
            client.sendall(b"here")
            assert read_exactly(client, 4) == b"here"


@pytest.mark.parametrize(("where", "host"), [("udp://127.0.0.1:0", "127.0.0.1"), ("udp://[::1]:0", "::1")])
def test_the_udp_echo_answers_every_client_and_counts(where: str, host: str) -> None:
    with running(EXAMPLES / "udp_echo.py", where) as program:
        address = listening(program)
        assert address[0] == host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as first, socket.socket(family, socket.SOCK_DGRAM) as second:
            for client in (first, second):
                client.settimeout(TIMEOUT)
                client.connect(address)
            for data in (b"one", b"", bytes(60_000)):
                first.send(data)
                second.send(data + b"!")
                assert first.recv(65536) == data
                assert second.recv(65536) == data + b"!"
        program.interrupt()
        assert program.end() == (0, "6 received, 6 sent, 0 dropped\n", "")


def test_the_deadline_of_a_scope_stops_the_server_and_its_handlers() -> None:
    with running(EXAMPLES / "cancel_scope.py", "1") as program:
        address = listening(program)
        with connect(*address) as client:
            assert read_exactly(client, 2) == b"0\n"
            lines = (b"0\n" + read_all(client)).split()
            assert lines == [str(number).encode() for number in range(len(lines))]
        status, out, err = program.end()
        assert (status, err) == (0, "")
        assert out == f"a handler ended after {len(lines)} lines\nthe deadline stopped the server\n"
        with pytest.raises(ConnectionRefusedError):
            connect(*address)


def test_tls_echo_speaks_tls_with_the_certificate_it_was_given(tmp_path: Path) -> None:
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate().cert_chain_pems))
    certificate().private_key_pem.write_to_path(key)
    with running(EXAMPLES / "tls_echo.py", "--cert", chain, "--key", key) as program:
        address = listening(program)
        with client_context().wrap_socket(connect(*address), server_hostname="localhost") as client:
            assert program.line() == f"{client.version()} with 127.0.0.1"
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            client.unwrap().close()
        with connect(*address) as client:
            client.sendall(b"this is not TLS\n")
            assert read_all(client) == b""
        program.interrupt()
        assert program.end() == (0, "", "")


def test_the_proxy_passes_each_half_close_on_and_keeps_the_other_direction() -> None:
    with upstream() as (target, listener), running(EXAMPLES / "proxy.py", target) as program:
        with connect(*listening(program)) as client, accept(listener) as served:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(served) == b"question"  # the end has come through
            served.sendall(b"answer")  # and the way back is still open
            assert read_exactly(client, 6) == b"answer"
            served.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        program.interrupt()
        assert program.end() == (0, "", "")


def test_the_proxy_explains_itself() -> None:
    status, out, err = run(EXAMPLES / "proxy.py")
    assert (status, out) == (1, "")
    assert "python examples/proxy.py tcp://HOST:PORT" in err


def test_the_unix_echo_tells_who_connects_and_removes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    with running(EXAMPLES / "unix_echo.py", f"unix://{path}") as program:
        assert program.line() == f"listening on {path}"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(path))
            assert program.line() == f"process {os.getpid()} of user {os.geteuid()}"
            assert send_and_read(client, LARGE) == LARGE
        program.interrupt()
        assert program.end() == (0, "", "")
    assert not path.exists()


def test_the_unix_echo_explains_itself() -> None:
    status, out, err = run(EXAMPLES / "unix_echo.py")
    assert (status, out) == (1, "")
    assert "socat - UNIX-CONNECT:" in err


def test_the_chat_tells_everybody_what_one_says() -> None:
    with running(EXAMPLES / "chat.py") as program:
        address = listening(program)
        with connect(*address) as first, first.makefile("rb") as first_lines:
            first.sendall(b"hello\n")
            assert first_lines.readline() == b"guest 1: hello\n"
            with connect(*address) as second, second.makefile("rb") as second_lines:
                assert first_lines.readline() == b"* guest 2 has joined\n"
                second.sendall("grüß ".encode() + b"Gott\r\nand more\n")
                for lines in (first_lines, second_lines):
                    assert lines.readline() == "guest 2: grüß Gott\n".encode()
                    assert lines.readline() == b"guest 2: and more\n"
            assert first_lines.readline() == b"* guest 2 has left\n"
            first.sendall(b"x" * 10_000)  # no line is as long as that
            assert program.line().startswith("guest 1: ")
        program.interrupt()
        assert program.end() == (0, "", "")


def test_the_demonstration_shows_an_echo_and_stops_its_server() -> None:
    status, out, err = run(EXAMPLES / "demo.py")
    assert (status, err) == (0, "")
    assert "client: sent 'Hello, io_uring!', got 'Hello, io_uring!'\n" in out
    assert out.endswith("server: stopped, exit status 0\n")
    port = re.search(r"tcp://127\.0\.0\.1:(\d+);", out)
    assert port
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", int(port[1]))


def test_the_line_server_serves_until_a_signal() -> None:
    with running(EXAMPLES / "line_server.py", "tcp://127.0.0.1:0", "0.5") as program:
        with connect(*listening(program)) as client:
            client.sendall(b"set colour deep blue\r\nget colo")
            answers = b"ok\nerror: too slow\n"
            assert read_all(client) == answers, "the time of the command line holds"
        program.interrupt()
        assert program.end() == (0, "", "")


@pytest.mark.parametrize("balancer", ["round_robin", "least_connections", "two_choices"])
def test_reactor_balancers_spreads_connections(balancer: str) -> None:
    with running(EXAMPLES / "reactor_balancers.py", balancer) as program:
        address = listening(program)
        with contextlib.ExitStack() as clients:
            told = []
            for _ in range(12):
                client = clients.enter_context(connect(*address))
                told.append([int(count) for count in read_line(client).split()])
            assert [sum(counts) for counts in told] == list(range(1, 13))
            assert len(told[-1]) == 4
            if balancer != "two_choices":  # which leaves it to chance how far they are apart
                assert told[-1] == [3, 3, 3, 3]
        program.interrupt()
        assert program.end() == (0, "", "")


def test_reactor_balancers_by_source_address() -> None:
    with running(EXAMPLES / "reactor_balancers.py", "source_ip_hash") as program:
        address = listening(program)
        with contextlib.ExitStack() as clients:
            for _ in range(5):
                counts = read_line(clients.enter_context(connect(*address))).split()
            assert sorted(counts) == [b"0", b"0", b"0", b"5"]


def read_line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(client, 1)
    return line


def test_graceful_finishes_what_was_asked() -> None:
    count = 1_500_000  # some 10 MB, which no kernel holds: the answer is under way until it is read
    with running(EXAMPLES / "graceful.py") as program:
        address = listening(program)
        with connect(*address) as asking, connect(*address) as silent:
            asking.sendall(b"%d\n" % count)
            assert read_exactly(asking, 4) == b"1\n2\n"
            program.interrupt(signal.SIGTERM)
            assert program.line() == "draining 2 connections"
            assert read_all(silent) == b""
            with pytest.raises(ConnectionRefusedError):
                connect(*address)
            assert read_all(asking) == b"".join(b"%d\n" % number for number in range(3, count + 1))
        assert program.end() == (0, "finished 2, cut off 0\n", "")


@pytest.mark.parametrize(("seconds", "signals"), [("0.05", 1), ("1000", 2)], ids=["time is up", "a second signal"])
def test_graceful_does_not_wait_for_ever(seconds: str, signals: int) -> None:
    with running(EXAMPLES / "graceful.py", "tcp://127.0.0.1:0", seconds) as program:
        with connect(*listening(program)) as asking:
            asking.sendall(b"10000000\n")
            assert read_exactly(asking, 4) == b"1\n2\n"
            program.interrupt()
            assert program.line() == "draining 1 connections"
            if signals == 2:
                program.interrupt(signal.SIGTERM)
            status, printed, complaints = program.end()
    assert (status, printed) == (0, "finished 0, cut off 1\n")
    if signals == 1:
        assert "cuts off 1 connections" in complaints
        assert complaints.count("\n") == 1
    else:
        assert not complaints


def test_callback_echo_serves_its_own_clients_and_ends() -> None:
    with running(EXAMPLES / "callback_echo.py") as program:
        status, printed, complaints = program.end()
    assert (status, complaints) == (0, "")
    lines = sorted(printed.splitlines())
    assert lines == sorted(
        [
            "new connection from 127.0.0.1",
            "4 bytes received",
            "4 bytes sent",
            "connection to 127.0.0.1 closed: in good order",
            "a client got 'echo'",
        ]
        * 2
    )


def ask_process(client: socket.socket) -> int:
    """The process that serves a client of sharded.py."""
    client.sendall(b"?\n")
    answer = client.recv(100).decode()
    match = re.fullmatch(r"process (\d+)\n", answer)
    assert match, answer
    return int(match[1])


def test_sharded_serves_from_several_processes_replaces_them_and_drains() -> None:
    with running(EXAMPLES / "sharded.py", "2") as program:
        address = listening(program)
        match = re.fullmatch(r"the server is process (\d+)", program.line())
        assert match
        seen: set[int] = set()
        clients = 0
        while len(seen) < 2:
            with connect(*address) as client:
                seen.add(ask_process(client))
            clients += 1
        assert int(match[1]) not in seen
        with connect(*address) as client:
            owner = ask_process(client)
            program.interrupt(signal.SIGHUP)
            assert client.recv(100) == b"", "it is told to finish when its process is replaced"
        successors: set[int] = set()
        while len(successors) < 2:
            with connect(*address) as client:
                successors |= {ask_process(client)} - seen
            clients += 1
        assert owner in seen
        program.interrupt(signal.SIGTERM)
        status, out, err = program.end()
        assert (status, err) == (0, "")
        assert re.fullmatch(rf"served {clients + 1} connections, by process: \(\d+, \d+\)\n", out), out


@pytest.mark.parametrize("processes", [(), ("tcp://127.0.0.1:0", "2")])
@pytest.mark.parametrize("signals", [1, 2])
def test_the_book_of_the_lifespan_has_what_clients_were_thanked_for(
    tmp_path: Path, processes: tuple[str, ...], signals: int
) -> None:
    book = tmp_path / "book"
    with running(EXAMPLES / "lifespan.py", book, *processes) as program:
        address = listening(program)
        with connect(*address) as client:
            client.sendall(b"a nice place\n")
            assert read_exactly(client, 10) == b"thank you\n"
            client.sendall(b"unfinished")
            for number in (signal.SIGTERM, signal.SIGINT)[:signals]:  # of two of a kind one could be lost
                program.interrupt(number)
            if signals == 1:
                client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        status, out, _err = program.end()
    assert status == 0
    assert out.count("has closed the book") == (2 if processes else 1)
    assert book.read_bytes() == b"a nice place\n"


def test_the_web_app_serves_until_a_signal_and_closes_its_room() -> None:
    with running(EXAMPLES / "asgi_app.py") as program:
        host, port = listening(program)
        with websockets.sync.client.connect(f"ws://{host}:{port}/talk") as talk:
            talk.send("hello")
            assert talk.recv(TIMEOUT) == "0 listen"
        with connect(host, port) as other:
            other.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert b" 404 " in read_all(other)
        program.interrupt(signal.SIGTERM)
        assert program.end() == (0, "the room is closed\n", "")


def test_the_lifespan_explains_itself() -> None:
    status, _out, err = run(EXAMPLES / "lifespan.py")
    assert status == 1
    assert "BOOK" in err


def test_the_chat_of_two_processes_is_one_conversation(tmp_path: Path) -> None:
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(b"".join(blob.bytes() for blob in certificate().cert_chain_pems))
    key.write_bytes(certificate().private_key_pem.bytes())
    with running(EXAMPLES / "chat_processes.py", str(pem), str(key), "tcp://127.0.0.1:0", "2") as program:
        host, port = listening(program)
        clients = []
        for name in (b"ada", b"grace"):  # the balancer takes the two processes in turn
            client = client_context().wrap_socket(connect(host, port), server_hostname="localhost")
            clients.append(client)
            assert read_exactly(client, 11) == b"your name?\n"
            client.sendall(name + b"\n")
            joined = b"* " + name + b" has joined\n"
            for one in clients:
                assert read_exactly(one, len(joined)) == joined
        clients[0].sendall(b"hello\n")
        for one in clients:
            assert read_exactly(one, 11) == b"ada: hello\n"
        clients[1].close()
        assert read_exactly(clients[0], 17) == b"* grace has left\n"
        program.interrupt(signal.SIGTERM)
        assert program.end() == (0, "", "")
        clients[0].close()
