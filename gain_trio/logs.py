"""Formatters for :mod:`logging`, for programs that configure it themselves."""

from ._server import JsonFormatter

__all__ = ["JsonFormatter"]
