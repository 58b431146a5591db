"""The files of ``--tls-cert``, ``--tls-key`` and ``--tls-client-ca``: a context of them, or which is wrong, and why."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_TRUSTED: Final = b"-----BEGIN TRUSTED CERTIFICATE-----"
_KEY_END: Final = b"PRIVATE KEY-----"


def load_context(certificate: str, key: str | None, client_ca: str | None = None) -> ssl.SSLContext:
    """A server's context of these files.

    Raises:
      ValueError: they cannot be read, or are none, or do not belong together; says which, and what to do.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    key_file, flag = (certificate, "--tls-cert") if key is None else (key, "--tls-key")
    if not _has(_read(certificate, "--tls-cert"), _CERTIFICATE, _TRUSTED):
        raise ValueError(
            f"there is no certificate in {certificate}: --tls-cert is a PEM file, with -----BEGIN CERTIFICATE-----"
        )
    if _KEY_END not in _read(key_file, flag):
        cure = (
            "give its file by --tls-key" if key is None else "--tls-key is a PEM file, with -----BEGIN PRIVATE KEY-----"
        )
        raise ValueError(f"there is no private key in {key_file}: {cure}")

    def refuse_to_ask() -> str:
        raise ValueError(
            f"the private key in {key_file} is encrypted, and a server cannot ask for the pass phrase: "
            f"openssl pkey -in {key_file} -out NEW.pem takes it off"
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        raise ValueError(_why_not(error, certificate, key_file)) from error
    except OSError as error:
        raise ValueError(f"cannot read {certificate} or {key_file}: {error.strerror}") from error
    if client_ca is not None:
        _read(client_ca, "--tls-client-ca")
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ValueError(
                f"there are no certificates of authorities in {client_ca}: --tls-client-ca is a PEM file, with "
                f"-----BEGIN CERTIFICATE----- ({error.reason or error})"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _has(text: bytes, *beginnings: bytes) -> bool:
    return any(beginning in text for beginning in beginnings)


def _read(name: str, flag: str) -> bytes:
    try:
        return Path(name).read_bytes() if name else b""
    except OSError as error:
        raise ValueError(f"cannot read {name}, the file of {flag}: {error.strerror}") from error


def _why_not(error: ssl.SSLError, certificate: str, key_file: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key in {key_file} is not that of the first certificate in {certificate}: give the pair of files"
    return (
        f"the certificate in {certificate}, or the private key in {key_file}, is damaged ({error.reason or error}): "
        f"openssl x509 -in {certificate} -noout and openssl pkey -in {key_file} -noout show which"
    )
