"""Choosing the socket of a shared port by CPU, with a classic BPF program (socket(7), Linux 4.5).

By default the kernel hashes the two addresses of a connection.  A BPF program can choose instead: it returns the number of
a socket in its group, counted in the order in which the sockets began to listen, or were bound (UDP).  This program returns
the CPU that handles the SYN, or the datagram, modulo the number of sockets::

    ld   A, cpu             BPF_LD  | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_CPU
    mod  A, number          BPF_ALU | BPF_MOD | BPF_K
    ret  A                  BPF_RET | BPF_A

The program belongs to the group: attached to one socket, it serves all.  When a socket of the group is closed, the last one
gets its number, and the kernel uses the hash if the program returns a number beyond the last one.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
import sys
from typing import Final, Protocol

SO_ATTACH_REUSEPORT_CBPF: Final = 51  # <asm-generic/socket.h>; Python has no name for it

_LD_ABS_W: Final = 0x20
_ALU_MOD_K: Final = 0x94
_RET_A: Final = 0x16
_CPU: Final = (-0x1000 + 36) & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_CPU, <linux/filter.h>


class HasOptions(Protocol):
    """A socket, or what has one and passes its options on."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """See :meth:`socket.socket.setsockopt`."""


def steer_by_cpu(sock: HasOptions, count: int) -> None:
    """Have the kernel choose among the ``count`` sockets of the group of ``sock`` by the CPU that handles the packet.

    Raises:
      ValueError: this system lacks SO_ATTACH_REUSEPORT_CBPF.
    """
    instructions = ((_LD_ABS_W, _CPU), (_ALU_MOD_K, count), (_RET_A, 0))
    if sys.platform != "linux":
        raise ValueError(
            f"cbpf=True asks for SO_ATTACH_REUSEPORT_CBPF, which {sys.platform} does not have; leave it out"
        )
    # struct sock_filter { __u16 code; __u8 jt, jf; __u32 k; }[], and struct sock_fprog { unsigned short; pointer; }
    program = array.array("B", b"".join(struct.pack("=HBBI", code, 0, 0, k) for code, k in instructions))
    address, _size = program.buffer_info()
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", len(instructions), address))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        raise ValueError("cbpf=True asks for SO_ATTACH_REUSEPORT_CBPF, which this kernel does not have") from error
