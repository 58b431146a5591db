"""ASGI's TLS extension: what a scope says of the connection's TLS."""

from __future__ import annotations

import functools
import ssl
from typing import Any, Final

from gain_trio._transports import Connection

_VERSIONS: Final = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""The names of RFC 4514, section 3, by those of :meth:`ssl.SSLSocket.getpeercert`."""
_ESCAPED: Final = frozenset('"+,;<>\\')


def tls_extension(connection: Connection) -> dict[str, Any]:
    """What the extension says of a connection with TLS.

    The server's own certificate is not known here, so it is None, and the client's chain has the client's certificate alone.
    """
    certificate = connection.getpeercert(binary_form=True)
    subject = connection.getpeercert()
    cipher = connection.cipher()
    return {
        "server_cert": None,
        "client_cert_chain": (ssl.DER_cert_to_PEM_cert(certificate),) if isinstance(certificate, bytes) else (),
        "client_cert_name": _distinguished_name(subject) if isinstance(subject, dict) and subject else None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(connection.tls_version() or ""),
        "cipher_suite": None if cipher is None else _cipher_suites().get(cipher[0]),
    }


@functools.cache
def _cipher_suites() -> dict[str, int]:
    """The numbers of the cipher suites that OpenSSL knows, by its names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}


def _distinguished_name(certificate: dict[str, Any]) -> str:
    """The subject as a string of RFC 4514, whose first part is the last one of the certificate."""
    parts = [
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in relative)
        for relative in certificate.get("subject", ())
    ]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    text = "".join(
        f"\\{character}" if character in _ESCAPED else "\\00" if character == "\0" else character for character in value
    )
    if text.startswith((" ", "#")):
        text = "\\" + text
    return f"{text[:-1]}\\ " if text.endswith(" ") and len(value) > 1 else text
