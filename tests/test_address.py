"""Addresses as text."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import fuzz  # noqa: F401  # loads Hypothesis' profile
from support.fuzz import assume, example, given, st

from gain_trio._transports import Address, FdAddress, TcpAddress, UdpAddress, UnixAddress, parse_address
from gain_trio._transports._addresses import _address

pytestmark = pytest.mark.no_run

ALL: tuple[_address.Scheme, ...] = ("tcp", "udp", "unix", "fd")


def parse(text: str) -> Address:
    """An address of any kind."""
    return parse_address(text, schemes=ALL)


# --- a host and a port ---


@pytest.mark.parametrize("kind", [TcpAddress, UdpAddress])
@pytest.mark.parametrize(
    ("rest", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("localhost:0", "localhost", 0),
        ("example.com:65535", "example.com", 65535),
        ("my_host-1.example.com.:1", "my_host-1.example.com.", 1),
        ("bücher.example:80", "bücher.example", 80),
        ("[::1]:443", "::1", 443),
        ("[::]:0", "::", 0),
        ("[::ffff:192.0.2.1]:1", "::ffff:192.0.2.1", 1),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("[fe80::1%2]:1", "fe80::1%2", 1),
        ("[fe80::1%25]:1", "fe80::1%25", 1),
        (":80", "", 80),
        ("a:00080", "a", 80),
    ],
)
def test_what_is_one(kind: type[TcpAddress | UdpAddress], rest: str, host: str, port: int) -> None:
    assert parse(f"{kind.scheme}://{rest}") == kind(host, port)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "no scheme"),
        ("127.0.0.1:8080", "no scheme"),
        ("localhost", "no scheme"),
        ("tcp:127.0.0.1:80", "no scheme"),
        ("http://127.0.0.1:8080", "can use: the scheme must be tcp;"),
        ("TCP://127.0.0.1:8080", "the scheme must be tcp, in lower case"),
        ("udp://127.0.0.1:8080", r"used here: the scheme must be tcp; write .*; UDP is for serve_datagrams\(\)"),
        ("unix:///run/app.sock", "is not an address that can be used here: the scheme must be tcp;"),
        ("fd://3", "is not an address that can be used here: the scheme must be tcp;"),
        ("://127.0.0.1:8080", "the scheme must be tcp"),
        (" tcp://127.0.0.1:8080", "the scheme must be tcp"),
        ("tcp://", "a host and a port, and the port is missing"),
        ("tcp://127.0.0.1", "the port is missing"),
        ("tcp://[::1]", "the port is missing"),
        ("tcp://127.0.0.1:", "the port is missing"),
        ("tcp://127.0.0.1:http", "the port must be a number, and not 'http'"),
        ("tcp://127.0.0.1:-1", "the port must be a number"),
        ("tcp://127.0.0.1:+1", "the port must be a number"),
        ("tcp://127.0.0.1:80 ", "the port must be a number, and not '80 '"),
        ("tcp://127.0.0.1:80\n", "the port must be a number"),
        ("tcp://127.0.0.1:٨٠", "the port must be a number"),
        ("tcp://127.0.0.1:²", "the port must be a number"),
        ("tcp://127.0.0.1:80/", r"not a path \('/'\)"),
        ("tcp://127.0.0.1:80?x", r"not a query \('\?'\)"),
        ("tcp://127.0.0.1:80#x", r"not a fragment \('#'\)"),
        ("tcp://user@host:80", r"not a user name \('@'\)"),
        ("tcp://user:password@host:80", r"not a user name \('@'\)"),
        ("tcp://::1:80", "an IPv6 address stands in brackets"),
        ("tcp://::1", "an IPv6 address stands in brackets"),
        ("tcp://[::1:80", "a host and a port"),
        ("tcp://[[::1]]:80", "a host and a port"),
        ("tcp://[::1]80", "a host and a port"),
        ("tcp://127.0.0.1:65536", "at most 65535"),
        ("tcp://127.0.0.1:99999", "at most 65535"),
        ("tcp://127.0.0.1:100000", "at most 65535"),
        ("tcp://127.0.0.1:" + "9" * 5000, "at most 65535"),
        ("tcp://[127.0.0.1]:80", "brackets are for IPv6"),
        ("tcp://[]:80", "brackets are for IPv6"),
        ("tcp://[::1::2]:80", "not an IPv6 address"),
        ("tcp://[12345::]:80", "not an IPv6 address"),
        ("tcp://[:]:80", "not an IPv6 address"),
        ("tcp://[::1%]:80", "not an IPv6 address"),
        ("tcp://[fe80::1%25eth0]:80", "write it as in fe80::1%eth0"),
        ("tcp://my host:80", "whitespace"),
        ("tcp:// 127.0.0.1:80", "whitespace"),
        ("tcp://a\0b:80", "unprintable"),
        ("tcp://a\u200bb:80", "unprintable"),
        ("tcp://a%20b:80", "not percent-encoded"),
        ("tcp://a\\b:80", "neither a name nor an IP address"),
        ("tcp://256.0.0.1:80", "four numbers of 0 to 255"),
        ("tcp://127.1:80", "four numbers of 0 to 255"),
        ("tcp://127.0.0.01:80", "without leading zeros"),
        ("tcp://1:80", "four numbers of 0 to 255"),
        ("tcp://.:80", "four numbers of 0 to 255"),
    ],
)
def test_what_is_none(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(address)
    assert repr(address) in str(caught.value)
    assert "tcp://127.0.0.1:8080" in str(caught.value), "it says what one looks like"


@pytest.mark.parametrize("address", [None, 8080, b"tcp://127.0.0.1:80", ("127.0.0.1", 80), Path("/run/app.sock")])
def test_what_is_not_even_text(address: Any) -> None:
    with pytest.raises(TypeError, match="an address is a string"):
        parse_address(address)


def test_the_schemes_that_a_caller_can_use() -> None:
    assert parse_address("tcp://a:1", schemes=["unix", "tcp"]) == TcpAddress("a", 1)
    with pytest.raises(
        ValueError, match=r"the scheme must be unix or fd; write unix:///run/app.sock or fd://3$"
    ) as caught:
        parse_address("tcp://a:1", schemes=["unix", "fd"])
    assert "tcp://127" not in str(caught.value)
    with pytest.raises(ValueError, match="the scheme must be tcp, udp, unix or fd;"):
        parse("http://a:1")


@pytest.mark.parametrize("kind", [TcpAddress, UdpAddress])
@pytest.mark.parametrize(
    ("host", "port", "error"),
    [
        ("a b", 1, ValueError),
        ("[::1]", 1, ValueError),
        ("::1::", 1, ValueError),
        ("a/b", 1, ValueError),
        ("a", -1, ValueError),
        ("a", 65536, ValueError),
        (None, 1, TypeError),
        (b"a", 1, TypeError),
        ("a", "1", TypeError),
        ("a", None, TypeError),
    ],
)
def test_a_host_and_a_port_that_cannot_be(
    kind: type[TcpAddress | UdpAddress], host: Any, port: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        kind(host, port)


# --- a Unix socket ---


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:///run/app.sock", "/run/app.sock"),
        ("unix:///run/my%20app.sock", "/run/my app.sock"),
        ("unix:///run/50%25.sock", "/run/50%.sock"),
        ("unix:///a%3Fb%23c", "/a?b#c"),
        ("unix:////run//app.sock", "//run//app.sock"),
        ("unix:///@app", "/@app"),
        ("unix:///%2e%2F", None),  # a slash at the end, however it is written
        ("unix:///caf%C3%A9", "/café"),
        ("unix:///café", "/café"),
        ("unix:///%FF", os.fsdecode(b"/\xff")),
    ],
)
def test_a_path(text: str, path: str | None) -> None:
    if path is None:
        with pytest.raises(ValueError, match="names a directory"):
            parse(text)
        return
    address = parse(text)
    assert address == UnixAddress(path)
    assert isinstance(address, UnixAddress)
    assert address.sockaddr == os.fsencode(path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unix://@app", "app"),
        ("unix://@@app", "@app"),
        ("unix://@/run/app", "/run/app"),
        ("unix://@a%00b", "a\0b"),
        ("unix://@%2Fa%20b", "/a b"),
    ],
)
def test_an_abstract_name(text: str, name: str) -> None:
    address = parse(text)
    assert address == UnixAddress(name, abstract=True)
    assert isinstance(address, UnixAddress)
    assert address.sockaddr == b"\0" + name.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unix://", "the path of a Unix socket is empty"),
        ("unix://@", "the abstract name of a Unix socket is empty"),
        ("unix:/run/app.sock", "no scheme; write unix:///run/app.sock"),
        ("unix:app.sock", "no scheme"),
        ("unix://app.sock", "there are three slashes: unix:///app.sock perhaps"),
        ("unix://run/app.sock", "there are three slashes: unix:///run/app.sock perhaps"),
        ("unix://./app.sock", "begins at the root"),
        ("unix://%2Frun/app.sock ", "' ' cannot stand for itself: write %20"),
        ("unix:///", "names a directory"),
        ("unix:///run/", "names a directory"),
        ("unix:///run/my app.sock", "' ' cannot stand for itself: write %20"),
        ("unix:///run/app.sock?mode=0660", r"'\?' cannot stand for itself: write %3F"),
        ("unix:///run/app.sock#x", "'#' cannot stand for itself: write %23"),
        ("unix:///a\0b", "cannot stand for itself: write %00"),
        ("unix:///a%00b", "has a NUL in it"),
        ("unix:///a\nb", "write %0A"),
        ("unix:///a\u2028b", "write %E2%80%A8"),
        ("unix:///a\ud800b", "no file name can have"),
        ("unix:///50%", "two hexadecimal digits"),
        ("unix:///50%.sock", "two hexadecimal digits"),
        ("unix:///%4", "two hexadecimal digits"),
        ("unix:///%zz", "written %25"),
        ("unix:///" + "a" * 107, "has 108 bytes; a Unix socket's has at most 107"),
        ("unix://@" + "a" * 108, "abstract name 'a+' has 108 bytes"),
        ("unix:///" + "%C3%A9" * 54, "has 109 bytes"),
    ],
)
def test_what_is_no_unix_socket(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "unix:///run/app.sock or unix://@name" in str(caught.value)


def test_a_path_in_other_forms() -> None:
    assert UnixAddress(b"/caf\xc3\xa9") == UnixAddress("/café") == UnixAddress(Path("/café"))
    assert UnixAddress("/caf\udcc3\udca9").path == "/café"
    with pytest.raises(
        ValueError, match=r"'run/a b' does not begin at the root: write all of it, unix:///run/run/a%20b"
    ):
        UnixAddress("run/a b")
    with pytest.raises(ValueError, match="has a NUL in it"):
        UnixAddress("/a\0b")
    with pytest.raises(ValueError, match="no file name can have"):
        UnixAddress("/\ud800")
    with pytest.raises(TypeError):
        UnixAddress(3)  # type: ignore[arg-type]


def test_the_longest_path_is_one_that_the_kernel_takes(tmp_path: Path) -> None:
    name = "a" * (_address.SUN_PATH - 1 - len(os.fsencode(tmp_path)) - 1)
    assert name, "the directory of the tests has a short path"
    address = UnixAddress(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.sockaddr)
        assert sock.getsockname() == address.path
    with pytest.raises(ValueError, match="choose a shorter one"):
        UnixAddress(tmp_path / f"{name}a")


@pytest.mark.skipif(not _address._HAS_ABSTRACT_NAMES, reason="abstract names are Linux's")
def test_the_longest_abstract_name_is_one_that_the_kernel_takes() -> None:
    address = UnixAddress(os.urandom(8).hex().rjust(107, "a"), abstract=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.sockaddr)
        assert sock.getsockname() == address.sockaddr


def test_abstract_names_are_linuxs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_address, "_HAS_ABSTRACT_NAMES", False)
    with pytest.raises(ValueError, match="only Linux has them"):
        parse("unix://@app")


# --- a descriptor ---


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fd://3", FdAddress(3)),
        ("fd://0", FdAddress(0)),
        ("fd://2147483647", FdAddress(2147483647)),
        ("fd://systemd", FdAddress()),
        ("fd://systemd/web", FdAddress(name="web")),
        ("fd://systemd/app.socket", FdAddress(name="app.socket")),
        ("fd://systemd/3", FdAddress(name="3")),
        ("fd://systemd/a/b%20c%25", FdAddress(name="a/b c%")),
    ],
)
def test_a_descriptor(text: str, address: FdAddress) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fd://", "the descriptor is missing"),
        ("fd://-1", "the descriptor must be a number"),
        ("fd://web", "the descriptor must be a number, and not 'web'"),
        ("fd://3/", "the descriptor must be a number"),
        ("fd://٣", "the descriptor must be a number"),
        ("fd://2147483648", "a descriptor is at most 2147483647"),
        ("fd://99999999999999999999", "a descriptor is at most 2147483647"),
        ("fd://systemd/", "'' is not a name of a descriptor"),
        ("fd://systemd/a:b", "and no colon"),
        ("fd://systemd/caf%C3%A9", "printable ASCII"),
        ("fd://systemd/%0A", "printable ASCII"),
        ("fd://systemd/" + "a" * 256, "1 to 255"),
        ("fd://systemd/a b", "write %20"),
        ("fd://Systemd", "the descriptor must be a number"),
    ],
)
def test_what_is_no_descriptor(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "fd://3, fd://systemd or fd://systemd/NAME" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"descriptor": -1}, ValueError),
        ({"descriptor": 2**31}, ValueError),
        ({"descriptor": "3"}, TypeError),
        ({"name": ""}, ValueError),
        ({"name": b"web"}, TypeError),
        ({"descriptor": 3, "name": "web"}, ValueError),
    ],
)
def test_a_descriptor_that_cannot_be(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        FdAddress(**arguments)


# --- all of them ---


@pytest.mark.parametrize(
    "text",
    [
        "tcp://127.0.0.1:80",
        "tcp://[::1]:80",
        "tcp://localhost:0",
        "tcp://:1",
        "udp://[fe80::1%eth0]:53",
        "unix:///run/app.sock",
        "unix:///run/my%20app.sock",
        "unix://@name",
        "fd://3",
        "fd://systemd",
        "fd://systemd/web",
    ],
)
def test_back_to_text(text: str) -> None:
    address = parse(text)
    assert str(address) == text
    assert pickle.loads(pickle.dumps(address)) == address
    assert len({address, parse(text)}) == 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        address.scheme = "tcp"  # type: ignore[misc]


def test_kinds_differ() -> None:
    assert TcpAddress("a", 1) != UdpAddress("a", 1)
    assert UnixAddress("/a") != UnixAddress("/a", abstract=True)


HOSTS = st.one_of(
    st.sampled_from(["", "localhost", "bücher.example"]),
    st.ip_addresses().map(str),
    st.tuples(st.ip_addresses(v=6), st.from_regex(r"[a-z0-9.-]{1,15}", fullmatch=True)).map(
        lambda two: f"{two[0]}%{two[1]}"
    ),
    st.text(max_size=20),
)
PORTS = st.integers(0, 65535)


def made(kind: Any, *arguments: Any) -> Address:
    """An address of what is drawn, if there can be one."""
    try:
        address: Address = kind(*arguments)
    except ValueError:
        assume(False)
        raise
    return address


@given(
    st.one_of(
        st.tuples(st.sampled_from([TcpAddress, UdpAddress]), HOSTS, PORTS),
        st.tuples(st.just(UnixAddress), st.binary(min_size=1, max_size=106).map(lambda path: b"/" + path)),
        st.tuples(st.just(UnixAddress), st.text(max_size=60).map(lambda path: f"/{path}")),
        st.tuples(st.just(UnixAddress), st.binary(min_size=1, max_size=107), st.just(True)),
        st.tuples(st.just(FdAddress), st.integers(0, 2**31 - 1)),
        st.tuples(st.just(FdAddress), st.none(), st.text("abc ./%?#_\x7fé:", max_size=300)),
    )
)
def test_every_address_has_its_text(parts: tuple[Any, ...]) -> None:
    address = made(*parts)
    text = str(address)
    assert parse(text) == address
    assert str(parse(text)) == text
    assert text.isprintable()
    assert " " not in text


SNIPPETS = st.sampled_from(
    [
        "tcp",
        "udp",
        "unix",
        "fd",
        "://",
        ":",
        "/",
        "[",
        "]",
        "@",
        "%",
        "%25",
        "%00",
        "::1",
        "127.0.0.1",
        "80",
        "systemd",
        "a",
    ]
)


@given(st.one_of(st.text(), st.lists(st.one_of(SNIPPETS, st.characters()), max_size=12).map("".join)))
@example("tcp://[%\ud800]:1")
@example("unix:///\ud800")
@example("unix://@\udcff")
@example("fd://systemd/\ud800")
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for candidate in [text, *(f"{scheme}://{text}" for scheme in ALL)]:
        try:
            address = parse(candidate)
        except ValueError as error:
            assert repr(candidate) in str(error)  # noqa: PT017  # most of them raise, and some do not
        else:
            assert parse(str(address)) == address
