"""The errors of listening, with what an operator can do about each."""

from __future__ import annotations

import errno
import socket
from typing import Final

from ._address import Address, FdAddress, TcpAddress, UnixAddress

_PRIVILEGED: Final = 1024
"""The first port that every user may listen on (ip(7), net.ipv4.ip_unprivileged_port_start)."""


def cannot_listen(address: Address, error: OSError) -> OSError:
    """The error to raise in place of ``error``: of the same kind, with the address and a cure."""
    cure = _cure(address, error)
    text = f"cannot listen on {address}: {error.strerror}{f'; {cure}' if cure else ''}"
    if isinstance(error, socket.gaierror):
        return socket.gaierror(error.errno, text)
    return OSError(error.errno, text)


def _cure(address: Address, error: OSError) -> str | None:
    if isinstance(error, socket.gaierror):
        return "write the host's address in place of its name, or look the name up: getent hosts NAME"
    if isinstance(address, TcpAddress):
        return _cure_of_tcp(address.port, error.errno)
    if error.strerror and ":" in error.strerror:  # the message has a cause of its own
        return None
    if isinstance(address, FdAddress) and error.errno == errno.EBADF:
        return "the program that starts this one passes the descriptor, as a .socket unit of systemd does"
    if isinstance(address, UnixAddress):
        return {
            errno.ENOENT: "the folder does not exist: make it, or have systemd make it (RuntimeDirectory=)",
            errno.EACCES: "the user of this process may not write in the folder: change its owner, or choose another",
            errno.EROFS: "the folder cannot be written: choose another, below /run for example",
        }.get(error.errno or 0)
    return None


def _cure_of_tcp(port: int, number: int | None) -> str | None:
    if number == errno.EACCES and port < _PRIVILEGED:
        return (
            f"a port below {_PRIVILEGED} takes root, CAP_NET_BIND_SERVICE, or a .socket unit of systemd (fd://systemd)"
        )
    return {
        errno.EADDRINUSE: f"another program listens there: ss -ltnp 'sport = :{port}' names it",
        errno.EADDRNOTAVAIL: "no interface of this machine has that address: ip address lists them, and 0.0.0.0 or [::] "
        "stands for all",
    }.get(number or 0)
