"""The choice of the datagrams that the built-in echo answers."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, until

import gain_trio
from gain_trio._command._echoing import may_echo
from gain_trio._command._event_handlers import EchoDatagrams
from gain_trio._command._handlers import echo_datagram

pytestmark = pytest.mark.connections


@pytest.mark.parametrize(
    ("source", "own", "answered"),
    [
        (("127.0.0.1", 1024), ("127.0.0.1", 7777), True),
        (("127.0.0.1", 65535), ("127.0.0.1", 7777), True),
        (("127.0.0.1", 1023), ("127.0.0.1", 7777), False),
        (("192.0.2.1", 7), ("0.0.0.0", 7777), False),
        (("192.0.2.1", 0), ("0.0.0.0", 7777), False),
        (("127.0.0.1", 7777), ("127.0.0.1", 7777), False),
        (("192.0.2.1", 7777), ("0.0.0.0", 7777), False),
        (("::1", 7777, 0, 0), ("::", 7777, 0, 0), False),
        (("fe80::1%eth0", 5000, 0, 2), ("::", 7777, 0, 0), True),
        ("/run/client", "/run/server", True),
        ("/run/server", "/run/server", False),
        (b"\0name", b"\0name", False),
    ],
)
def test_may_echo(source: Any, own: Any, answered: bool) -> None:
    assert may_echo(source, own) is answered


def port_of_a_service() -> socket.socket:
    """A socket at a port below 1024, if this user may have one."""
    for port in range(1023, 600, -1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.bind(("127.0.0.1", port))
        except PermissionError:
            sock.close()
            pytest.skip("this user may not bind a port below 1024")
        except OSError:
            sock.close()
        else:
            return sock
    pytest.skip("no port below 1024 is free")


@pytest.mark.parametrize("kind", ["handler", "callbacks", "threads"])
async def test_the_ports_of_services_are_not_answered(kind: str) -> None:
    async def start(**status: Any) -> None:
        if kind == "handler":
            await gain_trio.serve_datagrams(echo_datagram, "udp://127.0.0.1:0", **status)
        else:
            options = {"async_handler": kind == "threads"}
            await gain_trio.callbacks.serve(EchoDatagrams(), "udp://127.0.0.1:0", **options, **status)

    with ExitStack() as stack, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(start)
            [address] = server.addresses
            service = stack.enter_context(port_of_a_service())
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind(("127.0.0.1", 0))
            for sock in (service, client):
                sock.setblocking(False)
            service.sendto(b"do not answer", address)
            client.sendto(b"answer", address)
            await until(lambda: _can_read(client))
            assert client.recv(100) == b"answer"
            assert not _can_read(service)
            nursery.cancel_scope.cancel()


def _can_read(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


async def test_its_own_address_is_not_answered(tmp_path: Path) -> None:
    for address in ("udp://127.0.0.1:0", "udp://0.0.0.0:0", f"unix://{tmp_path}/s"):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                serve = gain_trio.serve_datagrams
                server = await nursery.start(lambda address=address, **status: serve(echo_datagram, address, **status))
                own = server.address if isinstance(server.address, str) else ("127.0.0.1", server.address[1])
                await server.endpoint.send(b"for ever", own)
                await until(lambda server=server: server.statistics().handled == 1)
                counts = server.statistics().datagrams
                assert (counts.received, counts.sent, counts.queued) == (1, 1, 0)
                nursery.cancel_scope.cancel()
