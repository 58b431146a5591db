"""A bridge from asyncio: handlers made of protocols."""

from ._handler import ProtocolHandler

__all__ = ["ProtocolHandler"]
