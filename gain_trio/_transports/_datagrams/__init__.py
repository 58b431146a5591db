"""Datagram endpoints: the contract, and the implementations on the ring and over sockets."""

from ._endpoint import DatagramEndpoint, DatagramStatistics
from ._open_endpoint import open_datagram_endpoint

__all__ = [
    "DatagramEndpoint",
    "DatagramStatistics",
    "open_datagram_endpoint",
]
