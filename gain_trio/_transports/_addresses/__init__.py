"""Addresses as text, and the sockets that the package opens for them."""

from ._address import (
    SUN_PATH,
    Address,
    FdAddress,
    Scheme,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    address_text,
    parse_address,
    reachable_address,
)
from ._bind_retry import bind_with_retries
from ._open_sockets import close_sockets, open_sockets
from ._passed_descriptors import (
    MOST_AT_ONCE,
    MOST_WAITING,
    admit,
    close_if_dirty,
    close_unused,
    descriptor_closer,
    most_waiting,
    passed_descriptors,
    receives_descriptors,
)
from ._preparing import check_socket, prepare_socket
from ._reuse_port import steer_by_cpu
from ._shown import shown, shown_lines, shown_traceback
from ._socket_options import SocketOptions
from ._sockets import NO_SIGNAL, deepen_send_buffer, errnos, reset_on_close, share_port
from ._unix import (
    Access,
    PeerCredentials,
    bind_unix,
    check_access,
    check_unix,
    close_listening,
    connect_unix,
    peer_credentials,
)

__all__ = [
    "MOST_AT_ONCE",
    "MOST_WAITING",
    "NO_SIGNAL",
    "SUN_PATH",
    "Access",
    "Address",
    "FdAddress",
    "PeerCredentials",
    "Scheme",
    "SocketOptions",
    "TcpAddress",
    "UdpAddress",
    "UnixAddress",
    "address_text",
    "admit",
    "bind_unix",
    "bind_with_retries",
    "check_access",
    "check_socket",
    "check_unix",
    "close_if_dirty",
    "close_listening",
    "close_sockets",
    "close_unused",
    "connect_unix",
    "deepen_send_buffer",
    "descriptor_closer",
    "errnos",
    "most_waiting",
    "open_sockets",
    "parse_address",
    "passed_descriptors",
    "peer_credentials",
    "prepare_socket",
    "reachable_address",
    "receives_descriptors",
    "reset_on_close",
    "share_port",
    "shown",
    "shown_lines",
    "shown_traceback",
    "steer_by_cpu",
]
