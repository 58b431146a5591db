"""Addresses as text."""

from __future__ import annotations

from typing import Any

import pytest

from gain_trio._transports import TcpAddress, parse_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("tcp://127.0.0.1:8080", "127.0.0.1", 8080),
        ("tcp://localhost:0", "localhost", 0),
        ("tcp://example.com:65535", "example.com", 65535),
        ("tcp://[::1]:443", "::1", 443),
        ("tcp://[::]:0", "::", 0),
        ("tcp://[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("tcp://:80", "", 80),
        ("tcp://a:00080", "a", 80),
    ],
)
def test_what_is_one(address: str, host: str, port: int) -> None:
    assert parse_address(address) == TcpAddress(host, port)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "no scheme"),
        ("127.0.0.1:8080", "no scheme"),
        ("localhost", "no scheme"),
        ("tcp:127.0.0.1:80", "no scheme"),
        ("http://127.0.0.1:8080", "scheme must be tcp"),
        ("TCP://127.0.0.1:8080", "scheme must be tcp"),
        ("udp://127.0.0.1:8080", "scheme must be tcp"),
        ("://127.0.0.1:8080", "scheme must be tcp"),
        ("tcp://", "a host and a port"),
        ("tcp://127.0.0.1", "a host and a port"),
        ("tcp://127.0.0.1:", "a host and a port"),
        ("tcp://127.0.0.1:http", "a host and a port"),
        ("tcp://127.0.0.1:-1", "a host and a port"),
        ("tcp://127.0.0.1:+1", "a host and a port"),
        ("tcp://127.0.0.1:80 ", "a host and a port"),
        ("tcp://127.0.0.1:80\n", "a host and a port"),
        ("tcp://127.0.0.1:80/", "a host and a port"),
        ("tcp://127.0.0.1:80?x", "a host and a port"),
        ("tcp://user@host:80", "a host and a port"),
        ("tcp://::1:80", "a host and a port"),
        ("tcp://[::1]", "a host and a port"),
        ("tcp://[::1:80", "a host and a port"),
        ("tcp://[[::1]]:80", "a host and a port"),
        ("tcp://127.0.0.1:٨٠", "a host and a port"),
        ("tcp://127.0.0.1:65536", "at most 65535"),
        ("tcp://127.0.0.1:99999", "at most 65535"),
        ("tcp://127.0.0.1:100000", "a host and a port"),
        ("tcp://[127.0.0.1]:80", "brackets"),
        ("tcp://[]:80", "brackets"),
    ],
)
def test_what_is_none(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(address)
    assert repr(address) in str(caught.value)
    if "at most" not in message:
        assert "tcp://127.0.0.1:8080" in str(caught.value), "it says what one looks like"


@pytest.mark.parametrize("address", [None, 8080, b"tcp://127.0.0.1:80", ("127.0.0.1", 80)])
def test_what_is_not_even_text(address: Any) -> None:
    with pytest.raises(TypeError, match="an address is a string"):
        parse_address(address)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:80", "tcp://[::1]:80", "tcp://localhost:0", "tcp://:1"])
def test_back_to_text(text: str) -> None:
    assert str(parse_address(text)) == text
