"""A bridge from asyncio: handlers made of protocols."""

from ._protocol_handler import ProtocolHandler

__all__ = ["ProtocolHandler"]
