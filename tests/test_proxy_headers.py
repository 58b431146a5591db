"""What proxies say about clients: who is believed, what is read, and that a client cannot put anything in its place."""

from __future__ import annotations

from typing import Any

import pytest
from support.fuzz import given, st

from gain_trio.asgi._proxy_headers import MAX_HOPS, MAX_KNOWN, ProxyFields, TrustedProxies, _elements, proxied

pytestmark = pytest.mark.one_backend

PEER = ("127.0.0.1", 5000)
FOR, PROTO, HOST, FORWARDED = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"


def scope(*headers: tuple[bytes, bytes], kind: str = "http") -> dict[str, Any]:
    scheme = "http" if kind == "http" else "ws"
    return {"type": kind, "scheme": scheme, "client": PEER, "headers": [(b"host", b"inside"), *headers]}


def applied(*headers: tuple[bytes, bytes], proxies: TrustedProxies | None = None, kind: str = "http") -> dict[str, Any]:
    found = scope(*headers, kind=kind)
    (proxies or TrustedProxies(["127.0.0.1", "10.0.0.0/8", "fd00::/8"])).apply(found)
    return found


# --- who is believed ---


@pytest.mark.parametrize(
    ("trusted", "peer", "believed"),
    [
        (None, ("127.0.0.1", 1), True),
        (None, ("127.9.9.9", 1), True),
        (None, ("::1", 1, 0, 0), True),
        (None, ("::ffff:127.0.0.1", 1, 0, 0), True),
        (None, ("10.0.0.1", 1), False),
        (None, ("128.0.0.1", 1), False),
        (None, ("::2", 1, 0, 0), False),
        (None, None, False),
        (None, "", False),
        (None, "/run/socket", False),
        (["10.0.0.0/8"], ("10.255.0.1", 1), True),
        (["10.0.0.0/8"], ("11.0.0.1", 1), False),
        (["10.0.0.0/8"], ("127.0.0.1", 1), False),
        (["10.0.0.0/8"], ("::ffff:10.0.0.1", 1, 0, 0), True),
        (["10.0.0.0/8"], None, False),
        (["fe80::/10"], ("fe80::1%eth0", 1, 0, 2), True),
        (["unix"], None, True),
        (["unix"], b"\0abstract", True),
        (["unix"], ("127.0.0.1", 1), False),
        (["unix", "127.0.0.1"], ("127.0.0.1", 1), True),
        (True, ("192.0.2.1", 1), True),
        (True, None, True),
    ],
)
def test_who_is_believed(trusted: Any, peer: Any, believed: bool) -> None:
    proxies = TrustedProxies() if trusted is None else TrustedProxies(trusted)
    assert proxies.trusts(peer) is believed
    assert proxies.trusts(peer) is believed  # from memory


def test_the_memory_of_peers_is_bounded() -> None:
    proxies = TrustedProxies()
    for number in range(3 * MAX_KNOWN):
        assert not proxies.trusts((f"10.0.{number // 256}.{number % 256}", 1))
        assert len(proxies._known) <= MAX_KNOWN


@pytest.mark.parametrize(
    ("trusted", "options", "error"),
    [
        ([], {}, ValueError),
        (["10.0.0.1/8"], {}, ValueError),
        (["proxy.example"], {}, ValueError),
        ("127.0.0.1", {}, TypeError),
        (False, {}, TypeError),
        (None, {}, TypeError),
        (["127.0.0.1"], {"fields": "both"}, ValueError),
    ],
)
def test_what_cannot_be_trusted(trusted: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        TrustedProxies(trusted, **options)


# --- X-Forwarded-* ---


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"192.0.2.1", ("192.0.2.1", 0)),
        (b"  192.0.2.1\t", ("192.0.2.1", 0)),
        (b"192.0.2.1:4711", ("192.0.2.1", 4711)),
        (b"2001:db8::1", ("2001:db8::1", 0)),
        (b"2001:DB8:0::1", ("2001:db8::1", 0)),
        (b"[2001:db8::1]", ("2001:db8::1", 0)),
        (b"[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        (b"::ffff:192.0.2.1", ("192.0.2.1", 0)),
        (b"unknown", None),
        (b"_hidden", None),
        # the client's own words stand left
        (b"198.51.100.9, 192.0.2.1", ("192.0.2.1", 0)),
        (b"nonsense, 192.0.2.1", ("192.0.2.1", 0)),
        (b", , 192.0.2.1", ("192.0.2.1", 0)),
        (b"127.0.0.1, 192.0.2.1", ("192.0.2.1", 0)),
        # further proxies stand right
        (b"192.0.2.1, 10.1.2.3", ("192.0.2.1", 0)),
        (b"198.51.100.9, 192.0.2.1, 10.1.2.3, 10.3.2.1:80", ("192.0.2.1", 0)),
        (b"10.9.9.9, 10.1.2.3", ("10.9.9.9", 0)),
        (b"unknown, 10.1.2.3", None),
        (b"192.0.2.1,fd00::1,[fd00::2]:443", ("192.0.2.1", 0)),
    ],
)
def test_the_client_of_x_forwarded_for(value: bytes, client: tuple[str, int] | None) -> None:
    assert applied((FOR, value))["client"] == client


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        b"192.0.2.1 ,",
        b"192.0.2.1, ",
        b"192.0.2",
        b"192.0.2.256",
        b"192.0.2.01",
        b"0xc0000201",
        b"192.0.2.1:",
        b"192.0.2.1:65536",
        b"192.0.2.1:-1",
        b"192.0.2.1:1:2",
        b"[192.0.2.1]",
        b"[2001:db8::1",
        b"2001:db8::1]",
        b"[2001:db8::1]80",
        b"[2001:db8::1%eth0]",
        b"2001:db8::1::2",
        b"192.0.2.1/32",
        b"http://192.0.2.1",
        b'"192.0.2.1"',
        b"for=192.0.2.1",
        b"192.0.2.1\x00",
        b"\xff",
        b"192.0.2.1, nonsense, 10.1.2.3",
        b", ".join([b"192.0.2.1", *[b"10.1.2.3"] * MAX_HOPS]),
    ],
)
def test_behind_what_is_malformed_there_is_no_client(value: bytes) -> None:
    headers = ((FOR, value), (PROTO, b"https"), (HOST, b"a.example"))
    assert applied(*headers, proxies=TrustedProxies(["127.0.0.1", "10.0.0.0/8"], host=True)) == {
        **scope(*headers),
        "client": None,
    }


def test_fields_of_one_name_are_one_list() -> None:
    assert applied((FOR, b"192.0.2.1"), (FOR, b"10.1.2.3"))["client"] == ("192.0.2.1", 0)
    assert applied((FOR, b"192.0.2.9"), (FOR, b"192.0.2.1"))["client"] == ("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("names", "schemes", "scheme"),
    [
        (b"192.0.2.1", b"https", "https"),
        (b"192.0.2.1", b"HTTPS", "https"),
        (b"192.0.2.1", b"http", "http"),
        (b"192.0.2.1", b"wss", "https"),
        (None, b"https", "https"),
        (b"192.0.2.1, 10.1.2.3", b"https, http", "https"),
        (b"192.0.2.1, 10.1.2.3", b"https", "https"),
        (b"198.51.100.9, 192.0.2.1", b"https, http", "http"),
        (b"192.0.2.1", b"ftp, https", "https"),
    ],
)
def test_the_scheme_is_that_of_the_hop_of_the_client(names: bytes | None, schemes: bytes, scheme: str) -> None:
    headers = [(PROTO, schemes)] if names is None else [(FOR, names), (PROTO, schemes)]
    found = applied(*headers)
    assert found["scheme"] == scheme
    assert found["client"] == (PEER if names is None else ("192.0.2.1", 0))


@pytest.mark.parametrize("value", [b"ftp", b"", b"https ;", b"https, ftp"])
def test_a_malformed_scheme_is_ignored_by_itself(value: bytes) -> None:
    headers = ((FOR, b"192.0.2.1"), (PROTO, value))
    assert applied(*headers) == {**scope(*headers), "client": ("192.0.2.1", 0)}


@pytest.mark.parametrize(("value", "scheme"), [(b"https", "wss"), (b"wss", "wss"), (b"http", "ws"), (b"ws", "ws")])
def test_the_scheme_of_a_websocket(value: bytes, scheme: str) -> None:
    assert applied((PROTO, value), kind="websocket")["scheme"] == scheme


def test_the_host_counts_only_where_it_is_wanted() -> None:
    headers = ((FOR, b"192.0.2.1"), (HOST, b"www.example:8443"), (b"x", b"y"))
    assert applied(*headers)["headers"][0] == (b"host", b"inside")
    wanting = TrustedProxies(host=True)
    original = scope(*headers)
    given_headers = original["headers"]
    wanting.apply(original)
    assert original["headers"] == [(b"host", b"www.example:8443"), *headers]
    assert given_headers[0] == (b"host", b"inside")  # which other requests may share
    assert applied((FOR, b"192.0.2.1"), proxies=wanting)["headers"][0] == (b"host", b"inside")


@pytest.mark.parametrize("value", [b"", b"a b", b"a/b", b"user@host", b"a:b", b"a:123456", b"[::1", b"a\x00", b'"a"'])
def test_a_malformed_host_is_ignored_by_itself(value: bytes) -> None:
    headers = ((FOR, b"192.0.2.1"), (HOST, value), (PROTO, b"https"))
    found = applied(*headers, proxies=TrustedProxies(host=True))
    assert found == {**scope(*headers), "client": ("192.0.2.1", 0), "scheme": "https"}


def test_one_family_of_fields_is_read() -> None:
    both = ((FOR, b"192.0.2.1"), (FORWARDED, b"for=192.0.2.2"))
    assert applied(*both)["client"] == ("192.0.2.1", 0)
    assert applied(*both, proxies=TrustedProxies(fields="forwarded"))["client"] == ("192.0.2.2", 0)
    assert applied(both[1])["client"] == PEER
    assert applied(both[0], proxies=TrustedProxies(fields="forwarded"))["client"] == PEER


def test_with_every_peer_trusted_the_client_is_what_the_peer_saw() -> None:
    assert applied((FOR, b"198.51.100.9, 192.0.2.1"), proxies=TrustedProxies(True))["client"] == ("192.0.2.1", 0)


def test_without_fields_nothing_changes() -> None:
    assert applied() == scope()
    assert applied(proxies=TrustedProxies(fields="forwarded")) == scope()


# --- Forwarded ---


def forwarded(*values: bytes, host: bool = False) -> dict[str, Any]:
    proxies = TrustedProxies(["127.0.0.1", "10.0.0.0/8", "fd00::/8"], fields="forwarded", host=host)
    return applied(*[(FORWARDED, value) for value in values], proxies=proxies)


@pytest.mark.parametrize(
    ("values", "client", "scheme"),
    [
        ([b"for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b"For=192.0.2.1;Proto=https;by=203.0.113.43"], ("192.0.2.1", 0), "https"),
        ([b'for="192.0.2.1:4711"'], ("192.0.2.1", 4711), "http"),
        ([b'for="192.0.2.1:_port"'], ("192.0.2.1", 0), "http"),
        ([b'for="[2001:db8::1]:80"; proto="https"'], ("2001:db8::1", 80), "https"),
        ([b'for="\\1\\92.0.2.1"'], ("192.0.2.1", 0), "http"),
        ([b"proto=https"], PEER, "https"),
        ([b"for=unknown;proto=https"], None, "https"),
        ([b'for="_gazonk"'], None, "http"),
        ([b"for=192.0.2.1;proto=https, for=10.1.2.3;proto=http"], ("192.0.2.1", 0), "https"),
        ([b"for=192.0.2.1;proto=https , \tfor=10.1.2.3"], ("192.0.2.1", 0), "https"),
        ([b"for=198.51.100.9;proto=https, for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b"for=192.0.2.1", b'for="[fd00::1]"'], ("192.0.2.1", 0), "http"),
        ([b"nonsense", b"for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b'for="unfinished', b"for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b"for=10.1.1.1"], ("10.1.1.1", 0), "http"),
        ([b'x="a,b;c\\"d";for=192.0.2.1'], ("192.0.2.1", 0), "http"),
        ([b'for=192.0.2.1;x="\\\\"'], ("192.0.2.1", 0), "http"),
        ([b'for=192.0.2.1;x="\\", for=6.6.6.6"'], ("192.0.2.1", 0), "http"),
        # the client's own words stand left
        ([b"nonsense, for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b",for=192.0.2.1"], ("192.0.2.1", 0), "http"),
        ([b'for=", for=192.0.2.1'], ("192.0.2.1", 0), "http"),
        ([b'for=", for="192.0.2.1:80";proto=https'], ("192.0.2.1", 80), "https"),
        ([b'for="\\, for="192.0.2.1"'], ("192.0.2.1", 0), "http"),
        ([b'for=", for=192.0.2.1, for="10.1.2.3"'], ("192.0.2.1", 0), "http"),
        # a scheme by itself
        ([b"for=192.0.2.1;proto=ftp"], ("192.0.2.1", 0), "http"),
    ],
)
def test_the_client_of_forwarded(values: list[bytes], client: Any, scheme: str) -> None:
    found = forwarded(*values)
    assert (found["client"], found["scheme"]) == (client, scheme)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"for",
        b"for=",
        b"for=192.0.2.1;",
        b"for=192.0.2.1,",
        b"for =192.0.2.1",
        b"for=192.0.2.1:80",
        b"for=[2001:db8::1]",
        b'for="2001:db8::1"',
        b'for="192.0.2.1',
        b'for="192.0.2.1"x',
        b'for="192.0.2.1\\',
        b"for=192.0.2.1;for=192.0.2.2",
        b'for="192.0.2.1\\\\""',
        b"for=192.0.2.1 for=192.0.2.2",
        b"for=nonsense",
        b"for=192.0.2.1, nonsense",
        b"for=nonsense, for=10.1.2.3",
        b", ".join([b"for=192.0.2.1", *[b"for=10.1.2.3"] * MAX_HOPS]),
    ],
)
def test_behind_what_is_malformed_in_forwarded_there_is_no_client(value: bytes) -> None:
    assert forwarded(value) == {**scope((FORWARDED, value)), "client": None}


def test_the_host_of_forwarded() -> None:
    assert forwarded(b'for=192.0.2.1;host="a.example:80"', host=True)["headers"][0] == (b"host", b"a.example:80")
    assert forwarded(b"for=192.0.2.1;host=a.example")["headers"][0] == (b"host", b"inside")
    value = b'for=192.0.2.1;host="a b"'
    assert forwarded(value, host=True) == {**scope((FORWARDED, value)), "client": ("192.0.2.1", 0)}


# --- properties ---


# What parsers stumble over is likelier in them than in any bytes.
SAID = st.binary(max_size=80) | st.text(alphabet='"\\,;= \tfor1.', max_size=40).map(str.encode)


@given(SAID, st.sampled_from([b"192.0.2.1", b"192.0.2.1, 10.1.2.3", b"192.0.2.1,10.3.2.1,10.1.2.3"]), SAID, SAID)
def test_nothing_that_a_client_sends_changes_its_address(
    said: bytes, appended: bytes, scheme: bytes, host: bytes
) -> None:
    """A proxy appends to what the client has sent, in one field or in another one, and may pass other fields on."""
    others = ((PROTO, scheme), (HOST, host), (FORWARDED, said))
    proxies = TrustedProxies(["127.0.0.1", "10.0.0.0/8"], host=True)
    for headers in (((FOR, said + b", " + appended),), ((FOR, said), (FOR, appended))):
        assert applied(*headers, *others, proxies=proxies)["client"] == ("192.0.2.1", 0)


@given(
    SAID,
    st.sampled_from(
        [
            b'for="192.0.2.1:80";proto=https;host=a.example',
            b'proto=https;host="a.example";for="192.0.2.1:80"',
            b'for="192.0.2.1:80";proto=https;host=a.example, for=10.3.2.1;proto=http, for="10.1.2.3"',
            b'x="\\\\\\"";for="192.0.2.1:80";proto=https;host=a.example, for="[fd00::1]";by="_a"',
        ]
    ),
    st.sampled_from([b",", b", ", b" ,\t"]),
)
def test_nothing_that_a_client_sends_in_forwarded_changes_the_result(
    said: bytes, appended: bytes, comma: bytes
) -> None:
    for values in ([said + comma + appended], [said, appended]):
        found = forwarded(*values, host=True)
        assert (found["client"], found["scheme"]) == (("192.0.2.1", 80), "https")
        assert found["headers"][0] == (b"host", b"a.example")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["for", "by", "x"]), st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126))
        ).filter(bool),
        min_size=1,
        max_size=4,
    )
)
def test_elements_are_read_as_they_were_written(elements: list[dict[str, str]]) -> None:
    def quoted(value: str) -> str:
        return '"' + "".join("\\" + one if one in '"\\x' else one for one in value) + '"'

    text = ", ".join(";".join(f"{name}={quoted(value)}" for name, value in pairs.items()) for pairs in elements)
    found = [{name.decode(): value.decode() for name, value in one.items()} for one in _elements(text.encode())]
    assert found == elements[::-1]


@given(
    st.lists(st.tuples(st.sampled_from([FOR, PROTO, HOST, FORWARDED, b"x"]), st.binary(max_size=40)), max_size=6),
    st.sampled_from(["x-forwarded", "forwarded"]),
    st.booleans(),
)
def test_any_bytes_leave_a_scope_that_is_one(
    headers: list[tuple[bytes, bytes]], fields: ProxyFields, host: bool
) -> None:
    found = applied(*headers, proxies=TrustedProxies(["127.0.0.1", "10.0.0.0/8"], fields=fields, host=host))
    assert found["scheme"] in ("http", "https")
    client = found["client"]
    assert client is None or (isinstance(client[0], str) and 0 <= client[1] <= 65535)
    assert len([name for name, _value in found["headers"] if name == b"host"]) == 1


# --- in front of an app ---


async def test_an_app_behind_proxies() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("client"))

    behind = proxied(app, TrustedProxies())
    await behind(scope((FOR, b"192.0.2.1")), None, None)
    await behind({**scope((FOR, b"192.0.2.1")), "client": ("192.0.2.9", 1)}, None, None)
    await behind({**scope((FOR, b"192.0.2.1")), "client": None}, None, None)
    await behind({"type": "lifespan"}, None, None)
    assert seen == [("192.0.2.1", 0), ("192.0.2.9", 1), None, None]
