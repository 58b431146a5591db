"""Which of several sockets of a port gets a connection: by CPU, with a classic BPF program (socket(7), Linux 4.5).

By default the kernel hashes the two addresses of a connection.  A program can choose instead: it returns the number of a
socket in its group, counted in the order in which they began to listen, or were bound (UDP).  Ours returns the CPU that the
SYN, or the datagram, is handled on,
modulo their number::

    ld   A, cpu             BPF_LD  | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_CPU
    mod  A, number          BPF_ALU | BPF_MOD | BPF_K
    ret  A                  BPF_RET | BPF_A

It belongs to the group, so it is attached to one socket and holds for all.  When a socket of the group is closed, the last
one takes its number, and what the program returns beyond the last number is left to the hash.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gain_trio._transports._datagrams import DatagramEndpoint

SO_ATTACH_REUSEPORT_CBPF: Final = 51  # <asm-generic/socket.h>; Python has no name for it

_LD_ABS_W: Final = 0x20
_ALU_MOD_K: Final = 0x94
_RET_A: Final = 0x16
_CPU: Final = (-0x1000 + 36) & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_CPU, <linux/filter.h>


def steer_by_cpu(sock: socket.socket | DatagramEndpoint, count: int) -> None:
    """Have the group of ``sock``, which has ``count`` members, get what arrives by the CPU that it arrives on.

    Raises:
      ValueError: this system has no such thing.
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
