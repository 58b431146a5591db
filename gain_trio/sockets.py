"""What a program reads of the socket of a connection or a listener.

These are types of results, for annotations: :attr:`Connection.socket <gain_trio.Connection.socket>` and
:attr:`Listener.socket <gain_trio.Listener.socket>` are a :class:`ReadOnlySocket`, and
:meth:`Connection.peer_credentials <gain_trio.Connection.peer_credentials>` returns :class:`PeerCredentials`.
"""

from ._transports import PeerCredentials, ReadOnlySocket

__all__ = ["PeerCredentials", "ReadOnlySocket"]
