"""Certificates, contexts and connected pairs for the tests of TLS."""

from __future__ import annotations

import functools
import ssl

import trio
import trustme

from gain_trio import Connection, Marks, connect, open_listeners
from gain_trio._transports._tls._tls_connection import TlsConnection
from gain_trio._transports._tls._tls_handshake import server_handshake
from support.pairs import address_of

TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3


@functools.cache
def authority() -> trustme.CA:
    """The authority that has signed every valid certificate here."""
    return trustme.CA()


@functools.cache
def certificate() -> trustme.LeafCert:
    return authority().issue_cert("localhost", "127.0.0.1", "::1")


def server_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate().configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def client_context(trusted: trustme.CA | None = None) -> ssl.SSLContext:
    """A context that trusts one authority and not the system's, which take as long to load as twenty handshakes."""
    return ssl.create_default_context(cadata=(trusted or authority()).cert_pem.bytes().decode())


async def open_tls_pair(
    *,
    marks: Marks | None = None,
    client_marks: Marks | None = None,
    version: ssl.TLSVersion | None = None,
    https_compatible: bool = False,
) -> tuple[TlsConnection, TlsConnection]:
    """Open the client's connection and the accepted one."""
    found: list[Connection] = []
    marks = marks or Marks()
    [listener] = await open_listeners("tcp://127.0.0.1:0", marks=marks)

    async def serve() -> None:
        found.append(await server_handshake(await listener.accept(), server_context(version), marks, 30))

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await connect(
            address_of(listener), marks=client_marks, ssl_context=client_context(), https_compatible=https_compatible
        )
    [served] = found
    assert isinstance(client, TlsConnection)
    assert isinstance(served, TlsConnection)
    return client, served
