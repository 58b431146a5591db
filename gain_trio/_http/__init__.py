"""HTTP/1.1: heads, the reader of requests, and the built-in handler on it."""

from ._http_handler import IDLE_TIMEOUT, SITE, http
from ._http_heads import field_values, path_of, request_line, response
from ._http_requests import Exchange, Phase

__all__ = [
    "IDLE_TIMEOUT",
    "SITE",
    "Exchange",
    "Phase",
    "field_values",
    "http",
    "path_of",
    "request_line",
    "response",
]
