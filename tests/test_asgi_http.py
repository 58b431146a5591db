"""gain_trio.asgi: what an app is called with, and what of it arrives at the client."""

from __future__ import annotations

import array
import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi_serving import (
    BODY,
    TEXT,
    ask,
    client_of,
    closing,
    head_of_response,
    hello,
    raw_answer,
    receive_hello,
    request,
    serving_app,
)
from support.http_answers import answers
from support.pairs import receive_all
from trio.testing import wait_all_tasks_blocked

from gain_trio.asgi import ClientDisconnected

pytestmark = pytest.mark.connections


class Recorder:
    """An app that keeps its scopes and says hello."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await hello(scope, receive, send)


async def whole_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo_body(_scope: Any, receive: Any, send: Any) -> None:
    body = await whole_body(receive)
    await send(TEXT)
    await send({"type": "http.response.body", "body": body})


# --- the scope ---


async def test_the_scope_of_a_request() -> None:
    app = Recorder()
    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request("GET", "/a%20b/%C3%A4?x=%20&y", "X-One: 1", "x-one: two ", "Cookie: a=b"))
        await head_of_response(client)
        local, remote = client.local_address, client.remote_address
    [scope] = app.scopes
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b/ä",
        "raw_path": b"/a%20b/%C3%A4",
        "query_string": b"x=%20&y",
        "root_path": "",
        "headers": [(b"host", b"here"), (b"x-one", b"1"), (b"x-one", b"two"), (b"cookie", b"a=b")],
        "client": local,
        "server": remote,
        "extensions": {
            "http.response.pathsend": {},
            "http.response.trailers": {},
            "http.response.early_hint": {},
        },
    }


async def test_what_an_app_writes_to_a_scope_is_not_seen_by_others() -> None:
    refused = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal refused
        assert "mine" not in scope["extensions"]
        scope["extensions"]["mine"] = {}
        scope["headers"].clear()
        for shared in (scope["asgi"], scope["extensions"]["http.response.pathsend"]):
            writes: list[Callable[[], object]] = [
                lambda shared=shared: shared.__setitem__("mine", 1),
                lambda shared=shared: shared.update(mine=1),
                lambda shared=shared: shared.setdefault("mine", 1),
                lambda shared=shared: shared.__ior__({"mine": 1}),
                lambda shared=shared: shared.pop("version", None),
                shared.popitem,
                shared.clear,
            ]
            for write in writes:
                with pytest.raises(TypeError, match="change a copy"):
                    write()
                refused += 1
        own = copy.deepcopy({"asgi": scope["asgi"], "again": pickle.loads(pickle.dumps(scope["asgi"]))})
        own["asgi"]["mine"] = own["again"]["mine"] = 1
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
        await hello(scope, receive, send)

    async with serving_app(app) as server:
        for _ in range(2):
            got = await ask(server, request() * 3 + request("GET", "/other") + closing())
            assert [answer.status for answer in got] == [200] * 5
    assert refused == 140


@pytest.mark.parametrize(
    "odd", [memoryview(array.array("I", [1, 2])), memoryview(b"12345678").cast("I"), bytearray(b"12345678")]
)
async def test_a_body_in_a_buffer_has_its_length_in_bytes(odd: Any) -> None:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.body", "body": odd if scope["path"] == "/odd" else bytes(len(odd))})

    async with serving_app(app) as server:
        got = await ask(server, request("GET", "/odd") + request() + request("GET", "/odd") + closing())
    assert [answer.body for answer in got] == [bytes(odd), bytes(len(odd))] * 2
    assert {answer.fields["content-length"] for answer in got[1::2]} == {str(len(odd))}


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda value: memoryview(bytearray(value))])
async def test_a_field_in_a_buffer_is_a_field(kind: Callable[[bytes], Any]) -> None:
    values = [b"1", b"2"]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(kind(b"x-name"), kind(values.pop()))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(BODY)

    async with serving_app(app) as server:
        got = await ask(server, request() + closing())
    assert [answer.fields["x-name"] for answer in got] == ["2", "1"]


@pytest.mark.parametrize(
    ("line", "path", "raw_path", "query", "host"),
    [
        (b"GET / HTTP/1.1", "/", b"/", b"", b"here"),
        (b"GET /? HTTP/1.1", "/", b"/", b"", b"here"),
        (b"GET //a//b?c?d HTTP/1.1", "//a//b", b"//a//b", b"c?d", b"here"),
        (b"GET /%2F%zz HTTP/1.1", "//%zz", b"/%2F%zz", b"", b"here"),
        (b"GET http://there:1/a?b HTTP/1.1", "/a", b"/a", b"b", b"there:1"),
        (b"GET HTTPS://there HTTP/1.1", "/", b"/", b"", b"there"),
        (b"GET http://there?q HTTP/1.1", "/", b"/", b"q", b"there"),
        (b"OPTIONS * HTTP/1.1", "*", b"*", b"", b"here"),
    ],
)
async def test_the_target_in_the_scope(line: bytes, path: str, raw_path: bytes, query: bytes, host: bytes) -> None:
    app = Recorder()
    async with serving_app(app) as server:
        await raw_answer(server, line + b"\r\nHost: here\r\nConnection: close\r\n\r\n")
    [scope] = app.scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]


@pytest.mark.parametrize(
    ("root", "raw"), [("/api", b"/api"), ("/a:p@i(1)", b"/a:p@i(1)"), ("/\xe4 50%", b"/%C3%A4%2050%25")]
)
async def test_a_root_path_is_in_front_of_the_path(root: str, raw: bytes) -> None:
    app = Recorder()
    async with serving_app(app, root_path=root) as server:
        await raw_answer(server, request("GET", "/x%20y") + request("OPTIONS", "*") + closing("GET", "/"))
    assert [scope["root_path"] for scope in app.scopes] == [root] * 3
    assert [scope["path"] for scope in app.scopes] == [root + "/x y", "*", root + "/"]
    assert [scope["raw_path"] for scope in app.scopes] == [raw + b"/x%20y", b"*", raw + b"/"]


async def test_the_version_in_the_scope() -> None:
    app = Recorder()
    async with serving_app(app) as server:
        await raw_answer(server, request() + request(version="1.0"))
    assert [scope["http_version"] for scope in app.scopes] == ["1.1", "1.0"]


async def test_the_method_in_the_scope_is_in_capitals() -> None:
    app = Recorder()
    async with serving_app(app) as server:
        got = answers(await raw_answer(server, request("purge") + request("head") + closing("Get")))
    assert [scope["method"] for scope in app.scopes] == ["PURGE", "HEAD", "GET"]
    assert [answer.body for answer in got] == [b"Hello, World!"] * 3, "no proxy takes head for a HEAD"


async def test_no_request_has_anything_of_another_in_its_scope() -> None:
    app = Recorder()

    async def spoiling(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app(dict(scope, headers=list(scope["headers"])), receive, send)
        scope["headers"].append((b"x", b"y"))
        scope["path"] = "/spoiled"
        scope["more"] = 1

    async with serving_app(spoiling) as server:
        await raw_answer(server, request("GET", "/same") * 3 + closing("GET", "/same"))
        await raw_answer(server, closing("GET", "/same"))
        async with client_of(server) as client:
            for _ in range(3):
                await client.send(request("GET", "/same"))
                await receive_hello(client)
    assert len({repr({**scope, "headers": scope["headers"][:1], "client": None}) for scope in app.scopes}) == 1


async def test_a_repeated_request_has_the_scope_of_the_first() -> None:
    app = Recorder()
    async with serving_app(app) as server, client_of(server) as client:
        for target in ("/a", "/a", "/a", "/b?c", "/a", "/b?c", "/b?c", "/a", "/a"):
            for fields in ((), ("X: y",), ("Cookie: z",)):
                await client.send(request("POST" if target == "/b?c" else "GET", target, *fields))
                await receive_hello(client)
                scope = app.scopes[-1]
                path, _, query = target.partition("?")
                assert (scope["path"], scope["raw_path"]) == (path, path.encode())
                assert scope["query_string"] == query.encode()
                assert scope["method"] == ("POST" if query else "GET")
                assert len(scope["headers"]) == 1 + len(fields)
    assert len({id(scope["headers"]) for scope in app.scopes}) == len(app.scopes)
    assert {len(scope) for scope in app.scopes} == {13}


# --- the body of a request ---


@pytest.mark.parametrize(
    "sent",
    [
        closing("POST", "/", "Content-Length: 5", body=b"hello"),
        closing("POST", "/", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        closing("POST", "/", "Transfer-Encoding: chunked", body=b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n"),
    ],
)
async def test_a_body_arrives_whole_however_it_is_cut(sent: bytes) -> None:
    async with serving_app(echo_body) as server:
        for size in (1, 7, len(sent)):
            async with client_of(server) as client:
                for start in range(0, len(sent), size):
                    await client.send(sent[start : start + size])
                    await client.flush()
                [answer] = answers(await receive_all(client), "POST")
                assert (answer.status, answer.body) == (200, b"hello")


async def test_a_body_in_many_small_chunks_lets_other_tasks_run() -> None:
    """A piece of 64 KiB has ten thousand chunks of a byte, and the app finds all of it in memory."""
    count, turns = 5000, 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message["body"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            while message["more_body"]:
                message = await receive()
                body += message["body"]
            nursery.cancel_scope.cancel()
        assert body == b"x" * count
        await send(TEXT)
        await send(BODY)

    chunks = b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    async with serving_app(app) as server:
        [answer] = await ask(server, closing("POST", "/", "Transfer-Encoding: chunked", body=chunks), "POST")
    assert answer.body == b"Hello, World!"
    assert turns >= 5


async def test_many_small_chunks_of_a_client_that_is_gone_are_not_read() -> None:
    is_gone, is_over = trio.Event(), trio.Event()
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        received.append(await receive())
        await is_gone.wait()
        received.append(await receive())
        is_over.set()

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("POST", "/", "Transfer-Encoding: chunked", body=b"1\r\nx\r\n" * 10000))
            await client.flush()
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        is_gone.set()
        await is_over.wait()
    assert received[0]["more_body"]
    assert received[1:] == [{"type": "http.disconnect"}]


async def test_a_large_body_is_pulled() -> None:
    async with serving_app(echo_body) as server, client_of(server) as client:
        body = bytes(range(256)) * 8192
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, closing("POST", "/", f"Content-Length: {len(body)}", body=body))
            [answer] = answers(await receive_all(client), "POST")
        assert answer.body == body


async def test_the_last_piece_of_a_body_says_that_it_is_the_last() -> None:
    told = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        told.append(await receive())
        await hello(_scope, receive, send)

    async with serving_app(app) as server:
        await ask(server, closing())
        await ask(server, closing("POST", "/", "Content-Length: 2", body=b"hi"), "POST")
        chunked = closing("POST", "/", "Transfer-Encoding: chunked", body=b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n")
        await ask(server, chunked, "POST")
    assert told == [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.request", "body": b"hi", "more_body": False},
        {"type": "http.request", "body": b"hi", "more_body": False},
    ]


async def test_a_client_that_waits_for_a_100_gets_it_when_the_app_asks() -> None:
    asked = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asked.wait()
        await echo_body(scope, receive, send)

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(closing("POST", "/", "Content-Length: 5", "Expect: 100-continue"))
        await trio.testing.wait_all_tasks_blocked()
        assert client.inbound_buffered == 0
        asked.set()
        assert await head_of_response(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        [answer] = answers(await receive_all(client), "POST")
        assert answer.body == b"hello"


async def test_an_app_that_does_not_ask_answers_without_a_100_and_the_connection_is_closed() -> None:
    async with serving_app(hello) as server:
        [answer] = await ask(server, request("POST", "/", "Content-Length: 5", "Expect: 100-continue"), "POST")
    assert (answer.status, answer.fields["connection"]) == (200, "close")


async def test_a_body_that_the_app_has_not_read_is_skipped() -> None:
    async with serving_app(hello) as server:
        body = bytes(100_000)
        sent = request("POST", "/", "Content-Length: 100000", body=body)
        chunked = request("POST", "/", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
        got = await ask(server, sent + chunked + closing(), "POST", "POST")
    assert [answer.status for answer in got] == [200, 200, 200]


async def test_a_longer_one_ends_the_connection_after_the_response() -> None:
    async with serving_app(hello, limit_unread=1000) as server:
        sent = request("POST", "/", "Content-Length: 100000", body=bytes(100_000))
        got = await ask(server, sent + closing(), "POST")
    assert [answer.status for answer in got] == [200]


# --- the response ---


async def test_a_response_to_the_byte() -> None:
    async with serving_app(hello, date_header=False) as server:
        assert await raw_answer(server, closing()) == (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\nconnection: close\r\n"
            b"server: gain_trio\r\n\r\nHello, World!"
        )


async def test_a_remembered_head_is_as_the_first_one() -> None:
    async with serving_app(hello, date_header=False, server_header="") as server, client_of(server) as client:
        expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, World!"
        for _ in range(3):
            await client.send(request())
            assert await client.receive_exactly(len(expected)) == expected


async def test_a_response_has_a_date_and_a_server_unless_the_app_gives_them() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"Date", b"yesterday"), (b"SERVER", b"mine")] if _scope["path"] == "/own" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(BODY)

    async with serving_app(app) as server:
        for _ in range(2):
            usual, own = await ask(server, request() + closing("GET", "/own"))
            assert usual.fields["date"].endswith("GMT")
            assert usual.fields["server"] == "gain_trio"
            assert own.fields["date"] == "yesterday"
            assert own.fields["server"] == "mine"


async def in_pieces(_scope: Any, _receive: Any, send: Any) -> None:
    await send(TEXT)
    for piece in (b"Hello, ", b"", b"World"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


async def test_a_body_in_pieces_is_chunked_and_keeps_the_connection() -> None:
    async with serving_app(in_pieces) as server:
        first, second = await ask(server, request() + closing())
    assert first.body == second.body == b"Hello, World!"
    assert first.fields["transfer-encoding"] == "chunked"
    assert "content-length" not in first.fields


async def test_a_body_in_pieces_ends_with_the_connection_of_http_1_0() -> None:
    async with serving_app(in_pieces) as server:
        got = await raw_answer(server, request("GET", "/", "Connection: keep-alive", version="1.0"))
    head, _, body = got.partition(b"\r\n\r\n")
    assert body == b"Hello, World!"
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head


async def test_http_1_0_keeps_a_connection_if_it_says_so() -> None:
    async with serving_app(hello) as server:
        kept = request("GET", "/", "Connection: keep-alive", version="1.0")
        first, second = await ask(server, kept + request(version="1.0"))
    assert first.fields["connection"] == "keep-alive"
    assert second.fields["connection"] == "close"


@pytest.mark.parametrize("app", [hello, in_pieces])
async def test_head_has_the_fields_and_no_body(app: Any) -> None:
    async with serving_app(app) as server:
        head, whole = await ask(server, request("HEAD") + closing(), "HEAD")
    assert head.body == b""
    assert head.fields.keys() == whole.fields.keys() - {"connection"}
    assert head.fields.get("content-length") == whole.fields.get("content-length")


async def test_an_error_in_answer_to_a_head_has_no_body_either() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise LookupError("of the app")
        while (await receive()).get("more_body"):
            pass
        await hello(scope, receive, send)

    chunked = request("HEAD", "/", "Transfer-Encoding: chunked", body=b"nonsense\r\n")
    async with serving_app(app) as server:
        for sent, status in ((request("HEAD", "/fails"), 500), (chunked, 400)):
            received = await raw_answer(server, sent)
            assert received.startswith(b"HTTP/1.1 %d " % status)
            assert received.endswith(b"\r\n\r\n")
            assert b"\r\nContent-Length: 22\r\n" in received
        for sent, status in (
            (b"HEAD / HTTP/1.1\r\n\r\n", 400),
            (b"HEAD / HTTP/1.1\r\nHost : here\r\n\r\n", 400),
            (b"HEAD / HTTP/1.1\r\nHost: here\r\nX: " + b"x" * (64 * 1024), 431),
        ):
            received = await raw_answer(server, sent)
            assert received.startswith(b"HTTP/1.1 %d " % status)
            assert received.endswith(b"\r\n\r\n")
            assert received.count(b"\r\n\r\n") == 1
        fine, malformed = await ask(server, request("HEAD") + b"nonsense\r\n\r\n", "HEAD")  # its method is not known
    assert (fine.status, malformed.status, malformed.body) == (200, 400, b"this is no HTTP request\n")


async def test_an_upgrade_that_an_app_offers_is_in_the_field_connection_too() -> None:
    """RFC 9110, 7.8: without that a proxy would pass the offer on."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        offer = [(b"upgrade", b"example/2"), (b"connection", b"upgrade")]
        await send({"type": "http.response.start", "status": 426, "headers": offer})
        await send({"type": "http.response.body"})

    async with serving_app(app) as server:
        kept, again, closed = await ask(server, request() * 2 + closing())
    assert [kept.fields["upgrade"], kept.fields["connection"], again.fields["connection"]] == [
        "example/2",
        "upgrade",
        "upgrade",
    ]
    assert closed.fields["connection"] == "close, upgrade"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(status: int) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    async with serving_app(app) as server:
        first, second = await ask(server, request() + closing())
    assert (first.status, second.status) == (status, status)
    assert "content-length" not in first.fields
    assert "transfer-encoding" not in first.fields


async def test_the_apps_own_length_is_kept() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"he", "more_body": True})
        await send({"type": "http.response.body", "body": bytearray(b"ll"), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(b"o")})

    async with serving_app(app) as server:
        first, second = await ask(server, request() + closing())
    assert (first.status, first.body, first.fields["content-length"]) == (299, b"hello", "5")
    assert second.body == b"hello"


async def test_large_bodies_arrive_whole() -> None:
    body = bytes(range(256)) * 4096

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        if scope["path"] == "/pieces":
            for start in range(0, len(body), 100_000):
                piece = body[start : start + 100_000]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        else:
            await send({"type": "http.response.body", "body": body})

    async with serving_app(app) as server:
        got = await ask(server, request() + request("GET", "/pieces") + closing())
    assert [answer.body for answer in got] == [body] * 3


async def test_the_start_of_a_response_waits_for_its_body() -> None:
    goes_on = trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await goes_on.wait()
        await send(BODY)

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request())
        await trio.testing.wait_all_tasks_blocked()
        assert client.inbound_buffered == 0
        goes_on.set()
        assert (await head_of_response(client)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_the_first_piece_of_a_body_leaves_at_once() -> None:
    goes_on = trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request())
        await head_of_response(client)
        assert await client.receive_exactly(8) == b"3\r\none\r\n"
        goes_on.set()
        assert await client.receive_exactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_names_of_fields_are_in_lower_case_and_lists_are_fields_too() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [[b"X-One", b" 1 "], (b"x-two", b"")]})
        await send(BODY)

    async with serving_app(app, date_header=False) as server:
        for _ in range(2):
            got = await raw_answer(server, closing())
            assert b"\r\nx-one: 1\r\nx-two: \r\n" in got


async def test_fields_can_come_from_an_iterator() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = ((name, b"1") for name in (b"x-one", b"x-two"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(BODY)

    async with serving_app(app) as server:
        for answer in await ask(server, request() * 3 + closing()):
            assert answer.fields["x-one"] == answer.fields["x-two"] == "1"


# --- many requests ---


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"].endswith("3"):
            await trio.testing.wait_all_tasks_blocked()
        await send(TEXT)
        await send({"type": "http.response.body", "body": scope["raw_path"]})

    targets = [f"/{index}" for index in range(50)]
    async with serving_app(app) as server:
        sent = b"".join(request("GET", target) for target in targets)
        got = await ask(server, sent + closing("GET", "/last"))
    assert [answer.body.decode() for answer in got] == [*targets, "/last"]


async def test_requests_behind_one_whose_app_watches_its_client_are_kept() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/watching":
            await receive()
            with trio.move_on_after(0):
                await receive()
            with trio.CancelScope() as scope_of_watch:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    await trio.testing.wait_all_tasks_blocked()
                    scope_of_watch.cancel()
        await hello(scope, receive, send)

    async with serving_app(app) as server:
        got = await ask(server, request("GET", "/watching") + request() + request("GET", "/watching") + closing())
    assert [answer.status for answer in got] == [200] * 4


# --- what is refused ---


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, b"hello there\r\n\r\n"),
        (400, request("GET", "plain")),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (414, b"GET /" + b"x" * 20_000),
        (431, request("GET", "/", "X: " + "y" * 20_000)),
        (501, request("POST", "/", "Transfer-Encoding: gzip, chunked")),
        (400, request("POST", "/", "Transfer-Encoding: gzip")),
        (505, request(version="2.0")),
        (417, request("POST", "/", "Content-Length: 5", "Expect: more")),
    ],
)
async def test_what_is_no_request_is_refused(status: int, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(hello) as server:
        first, refusal = await ask(server, request() + sent)
    assert (first.status, refusal.status) == (200, status)
    assert refusal.fields["connection"] == "close"
    assert {"date", "server"} <= refusal.fields.keys()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("body", [b"5\r\nhelloX", b"nonsense\r\n", b"0\r\nContent-Length: 5\r\n\r\n"])
async def test_a_malformed_body_is_a_disconnect_to_the_app_and_a_400_to_the_client(body: bytes) -> None:
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            pass
        told.append(message["type"])
        if scope["path"] == "/answers":
            await hello(scope, receive, send)

    async with serving_app(app) as server:
        for target in ("/", "/answers"):
            [answer] = await ask(server, request("POST", target, "Transfer-Encoding: chunked", body=body), "POST")
            assert answer.status == 400
    assert told == ["http.disconnect"] * 2


async def test_a_client_that_ends_in_the_middle_of_a_head_is_told_so() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await client.send(request() + b"GET / HTTP/1.1\r\nHo")
        await client.send_eof()
        assert [answer.status for answer in answers(await receive_all(client))] == [200, 400]


async def test_a_client_that_ends_its_side_gets_its_responses() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await client.send(request() * 3)
        await client.send_eof()
        assert [answer.status for answer in answers(await receive_all(client))] == [200] * 3


def test_the_error_of_a_client_that_is_gone_is_an_oserror() -> None:
    assert issubclass(ClientDisconnected, OSError)
