"""What c/transfer_load.c does, over TLS: a program of its own, with the same arguments and the same result.

    python _transfer_tls.py PORT PID DIRECTION BYTES

Blocking calls.  It has to encrypt and decrypt as much as the server, so it is not much faster than the servers; the CPU
time of the servers shows what they cost.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

PIECE = 1 << 20
SETTLE_SECONDS = 0.02  # what the server does after its last byte is still charged to it
PATIENCE_SECONDS = 60.0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of the whole process, from the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime(~pid << 3 | 2)


def cpu_split(pid: int) -> tuple[float, float]:
    """User and system: fields 14 and 15.  The second field, the name in brackets, may itself hold blanks and brackets."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def without_checks() -> ssl.SSLContext:
    """Who the server is does not matter here, and its authority is gone."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(port: int) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    return without_checks().wrap_socket(sock)


def upload(connection: ssl.SSLSocket, count: int) -> None:
    piece = b"x" * PIECE
    for done in range(0, count, PIECE):
        connection.sendall(piece[: count - done])
    if len(connection.recv(1)) != 1:
        sys.exit("the server did not answer")


def download(connection: ssl.SSLSocket, count: int) -> None:
    buffer = bytearray(PIECE)
    received = 0
    while received < count:
        length = connection.recv_into(buffer)
        if not length:
            sys.exit(f"the stream ended after {received} of {count} bytes")
        if buffer[0] != ord("x") or buffer[length - 1] != ord("x"):
            sys.exit("a byte is not what was to be sent")
        received += length
    if received > count:
        sys.exit("the server sent more than it was asked for")


def main(port: int, pid: int, direction: str, count: int) -> None:
    with connect(port) as connection:
        user, system = cpu_split(pid)
        used, began = cpu_seconds(pid), time.monotonic()
        connection.sendall(struct.pack("!cQ", direction[:1].encode(), count))
        (upload if direction == "up" else download)(connection, count)
        seconds = time.monotonic() - began
    time.sleep(SETTLE_SECONDS)
    used = cpu_seconds(pid) - used
    user_after, system_after = cpu_split(pid)
    result = {
        "bytes": count,
        "seconds": seconds,
        "cpu_seconds": used,
        "user_seconds": user_after - user,
        "system_seconds": system_after - system,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
