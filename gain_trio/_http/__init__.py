"""HTTP/1.1: the reader of requests, whole responses, and the built-in handler on them."""

from ._head_splitting import Pair
from ._http_handler import IDLE_TIMEOUT, SITE, http
from ._http_heads import TOKEN, response, split_target
from ._http_requests import CONTINUE, Exchange, Phase
from ._linger import linger
from ._request_fields import CHUNKED, Memory, Refused, Request, RequestFraming, RequestMemory, tokens
from ._request_reader import MAX_HEAD, Limits, RequestReader

__all__ = [
    "CHUNKED",
    "CONTINUE",
    "IDLE_TIMEOUT",
    "MAX_HEAD",
    "SITE",
    "TOKEN",
    "Exchange",
    "Limits",
    "Memory",
    "Pair",
    "Phase",
    "Refused",
    "Request",
    "RequestFraming",
    "RequestMemory",
    "RequestReader",
    "http",
    "linger",
    "response",
    "split_target",
    "tokens",
]
