"""gain_trio.asgi: the options of its servers, addresses, TLS, worker processes, files, early hints and trailers."""

from __future__ import annotations

import ast
import functools
import math
import os
import pickle
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import asgi_apps
from support.asgi_serving import (
    BODY,
    TEXT,
    ask,
    client_of,
    closing,
    hello,
    raw_answer,
    request,
    serving_app,
)
from support.certificates import authority, client_context, server_context
from support.exchanges import Recorder, driven, exchange_over
from support.http_answers import answers
from support.pairs import receive_all, until
from support.workers import ARCHITECTURES, raises_alone

import gain_trio
from gain_trio.asgi import AsgiConfig, AsgiOptions, _response_heads
from gain_trio.asgi._asgi_handler import AsgiHandler
from gain_trio.asgi._response_heads import HeadMemory, Stamp, checked_name, checked_start, made_head

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("forked_workers")]


# --- the app and the options ---


def test_importing_the_package_does_not_load_it() -> None:
    program = "import gain_trio, sys; assert not [name for name in sys.modules if name.startswith('gain_trio.asgi')]"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_app_is_found_by_its_name() -> None:
    assert AsgiHandler("support.asgi_apps:tell_process", AsgiConfig()).app is asgi_apps.tell_process
    assert AsgiHandler("support.asgi_apps:made", AsgiConfig(factory=True)).app is asgi_apps.tell_process
    assert AsgiHandler(asgi_apps.made, AsgiConfig(factory=True)).app is asgi_apps.tell_process
    assert (
        repr(AsgiHandler("support.asgi_apps:tell_process", AsgiConfig())) == "<ASGI app support.asgi_apps:tell_process>"
    )
    copy = pickle.loads(pickle.dumps(AsgiHandler("support.asgi_apps:tell_process", AsgiConfig(root_path="/x"))))
    assert copy.app is asgi_apps.tell_process
    assert copy.config == AsgiConfig(root_path="/x")


@pytest.mark.parametrize(
    ("app", "kind", "text"),
    [
        ("support.asgi_apps", ValueError, "has the form package.module:name"),
        (":app", ValueError, "has the form"),
        ("support.no_such_apps:app", ValueError, "there is no module 'support.no_such_apps'"),
        ("support.asgi_apps:nothing", ValueError, "has no 'nothing'"),
        ("support.asgi_apps:number", TypeError, "an ASGI app is an async function"),
        (5, TypeError, "an ASGI app is an async function"),
        (dict, TypeError, "an ASGI app is an async function"),
    ],
)
async def test_what_is_no_app_is_refused(app: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        await gain_trio.asgi.serve(app, "tcp://127.0.0.1:0")


class OfAsgi2:
    """An app of ASGI 2: an object of it is called for each scope."""

    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class MadeOnce:
    """A class whose object is an app."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def function_of_asgi2(scope: Any) -> Any: ...


def of_wsgi(environ: Any, start_response: Any) -> Any: ...


@pytest.mark.parametrize(
    ("app", "cure"),
    [
        (OfAsgi2, "of ASGI 2, wrap it in asgiref"),
        (OfAsgi2({}), "of ASGI 2, wrap it in asgiref"),
        (function_of_asgi2, "of ASGI 2, wrap it in asgiref"),
        (of_wsgi, "a WSGI app, wrap it in"),
        (MadeOnce, "if an object of this class is the app, give the object"),
        (asgi_apps.made, "give factory=True"),
    ],
    ids=["class", "object", "function", "WSGI", "class of an app", "factory"],
)
async def test_an_app_of_another_kind_is_refused_with_a_cure(app: Any, cure: str) -> None:
    with pytest.raises(TypeError, match=cure):
        await gain_trio.asgi.serve(app, "tcp://127.0.0.1:0")


class AwaitedApp:
    """An app that is a class, as Starlette's endpoints are: each call of it is awaited."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.call = asgi_apps.says_who_asks(scope, receive, send)

    def __await__(self) -> Any:
        return self.call.__await__()


@pytest.mark.parametrize("options", [{}, {"task_per_request": True}, {"cancel_on_disconnect": True}], ids=str)
async def test_a_class_whose_objects_are_awaited_is_an_app(options: Any) -> None:
    async with serving_app(AwaitedApp, app_lifespan="auto", **options) as server:
        for answer in await ask(server, request() + closing()):
            assert b"127.0.0.1" in answer.body


async def test_a_factory_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="wants a function that returns the app"):
        await gain_trio.asgi.serve("support.asgi_apps:number", "tcp://127.0.0.1:0", factory=True)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"root_path": "api"}, ValueError),
        ({"root_path": "/api/"}, ValueError),
        ({"root_path": 1}, TypeError),
        ({"server_header": "a\r\nb"}, ValueError),
        ({"server_header": None}, TypeError),
        ({"date_header": 1}, TypeError),
        ({"limit_head": 10}, ValueError),
        ({"limit_head": 1.5}, TypeError),
        ({"limit_unread": -1}, ValueError),
        ({"limit_ahead": 0}, ValueError),
        ({"timeout_head": 0}, ValueError),
        ({"timeout_body": -1}, ValueError),
        ({"timeout_send": "x"}, TypeError),
        ({"timeout_keep_alive": math.nan}, ValueError),
        ({"cancel_on_disconnect": "yes"}, TypeError),
        ({"unknown": 1}, TypeError),
        ({"workers": 0}, ValueError),
        ({"config": 1}, TypeError),
        ({"asgi": 1}, TypeError),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await gain_trio.asgi.serve(hello, "tcp://127.0.0.1:0", **options)


def test_each_option_has_its_keyword_argument() -> None:
    own = set(attrs.fields_dict(AsgiConfig))
    assert set(AsgiOptions.__annotations__) >= own
    assert set(gain_trio.ServerOptions.__annotations__).isdisjoint(own)
    types = {name: str(field.type) for name, field in attrs.fields_dict(AsgiConfig).items()}
    given = {name: str(AsgiOptions.__annotations__[name]) for name in own}
    assert {name: kind.partition("'")[2].partition("'")[0] or kind for name, kind in given.items()} == types


async def test_options_beside_a_config_come_before_it() -> None:
    config = AsgiConfig(server_header="first", date_header=False)
    async with serving_app(hello, asgi=config, server_header="second") as server:
        [answer] = await ask(server, closing())
    assert answer.fields["server"] == "second"
    assert "date" not in answer.fields


# --- addresses ---


async def test_a_unix_socket(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await hello(scope, receive, send)

    address = f"unix://{tmp_path}/socket"
    async with serving_app(app, address), await gain_trio.connect(address) as client:
        await client.send(closing())
        assert len(answers(await receive_all(client))) == 1
    assert (seen[0]["client"], seen[0]["server"]) == (None, (f"{tmp_path}/socket", None))


async def test_an_inherited_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = os.dup(listening.fileno())
        async with serving_app(hello, f"fd://{descriptor}") as server:
            assert len(await ask(server, closing())) == 1


async def test_behind_a_proxy_the_client_is_the_proxys() -> None:
    async with serving_app(asgi_apps.says_who_asks, proxy_protocol=["127.0.0.0/8"]) as server:
        [answer] = await ask(server, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n" + closing())
    assert ast.literal_eval(answer.body.decode()) == (("192.0.2.1", 56324), ("192.0.2.2", 443))


async def test_an_address_of_ipv6_has_two_parts() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    async with serving_app(asgi_apps.says_who_asks, "tcp://[::1]:0") as server:
        port = server.addresses[0][1]
        async with await gain_trio.connect(f"tcp://[::1]:{port}") as client:
            await client.send(closing())
            [answer] = answers(await receive_all(client))
            assert ast.literal_eval(answer.body.decode()) == (client.local_address[:2], ("::1", port))


# --- TLS ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", [False, True])
async def test_tls(version: ssl.TLSVersion, shows: bool) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await hello(scope, receive, send)

    context, client_side = server_context(version), client_context()
    if shows:
        context.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(context)
        authority().issue_cert("me@here.example", common_name='Me, "myself"').configure_cert(client_side)
    async with serving_app(app, ssl_context=context) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(address, ssl_context=client_side, server_hostname="localhost") as client:
            await client.send(request() + closing())
            assert len(answers(await receive_all(client))) == 2
            cipher = client.cipher()
    assert [scope["scheme"] for scope in seen] == ["https"] * 2
    tls = seen[0]["extensions"]["tls"]
    assert tls["tls_version"] == {ssl.TLSVersion.TLSv1_2: 0x0303, ssl.TLSVersion.TLSv1_3: 0x0304}[version]
    assert cipher is not None
    assert (tls["cipher_suite"] >> 8 == 0x13) is (version is ssl.TLSVersion.TLSv1_3)
    assert tls["server_cert"] is None
    assert tls["client_cert_error"] is None
    if shows:
        [certificate] = tls["client_cert_chain"]
        assert certificate.startswith("-----BEGIN CERTIFICATE-----\n")
        assert 'CN=Me\\, \\"myself\\"' in tls["client_cert_name"]
    else:
        assert tls["client_cert_chain"] == ()
        assert tls["client_cert_name"] is None


# --- worker processes ---


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_worker_processes_import_the_app(architecture: Any) -> None:
    name = "support.asgi_apps:tell_process"
    async with serving_app(name, processes=2, architecture=architecture) as server:
        found = {(await ask(server, closing()))[0].body for _ in range(20)}
    assert len(found) == 2
    assert b"%d" % os.getpid() not in found


@pytest.mark.slow
async def test_worker_processes_get_a_function_pickled() -> None:
    async with serving_app(asgi_apps.tell_process, processes=1) as server:
        [answer] = await ask(server, closing())
    assert answer.body != b"%d" % os.getpid()


async def test_an_app_that_cannot_be_pickled_is_to_be_named() -> None:
    async def local(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)

    with pytest.raises(ValueError, match=r'give its name, "package.module:app"'):
        await gain_trio.asgi.serve(local, "tcp://127.0.0.1:0", processes=1)
    with pytest.raises(ValueError, match="give its name"):
        await gain_trio.asgi.serve(local, "tcp://127.0.0.1:0", config=gain_trio.ServerConfig(processes=1))


@pytest.mark.slow
async def test_a_worker_that_cannot_import_the_app_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "asgi_app_that_changes.py"
    module.write_text("async def app(scope, receive, send): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("asgi_app_that_changes")
    module.write_text("raise LookupError('of all things')\n")
    with raises_alone(gain_trio.WorkerFailed, "of all things"):
        async with serving_app("asgi_app_that_changes:app", processes=1):
            pytest.fail("it serves")


@pytest.mark.slow
async def test_replacing_workers_loses_no_request() -> None:
    async with serving_app("support.asgi_apps:tell_process", processes=2) as server:
        statuses: list[int] = []
        replaced = trio.Event()

        async def ask_on() -> None:
            while not replaced.is_set():
                statuses.extend([answer.status for answer in await ask(server, request() * 3 + closing())])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask_on)
            await server._renew()
            replaced.set()
    assert statuses
    assert set(statuses) == {200}


# --- files, early hints, trailers ---


CONTENT = bytes(range(256)) * 8000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("given", [True, False])
async def test_a_file_is_a_body(file: Path, given: bool) -> None:
    content = CONTENT

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % len(content))] if given else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(file)})

    async with serving_app(app) as server:
        got = await ask(server, request() + request("HEAD") + closing(), "GET", "HEAD")
    assert [answer.body for answer in got] == [content, b"", content]
    assert {answer.fields["content-length"] for answer in got} == {str(len(content))}


async def test_a_file_over_tls(file: Path) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.pathsend", "path": str(file)})

    async with serving_app(app, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(
            address, ssl_context=client_context(), server_hostname="localhost"
        ) as client:
            await client.send(closing())
            [answer] = answers(await receive_all(client))
    assert answer.body == CONTENT


async def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "empty")})

    async with serving_app(app) as server:
        assert [answer.body for answer in await ask(server, request() + closing())] == [b"", b""]


@pytest.mark.parametrize("size", [1, 64 * 1024, 64 * 1024 + 1])
async def test_small_files_arrive_whole_too(tmp_path: Path, size: int) -> None:
    (tmp_path / "small").write_bytes(b"x" * size)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "small")})

    async with serving_app(app) as server:
        got = await ask(server, request() + request("HEAD") + closing(), "GET", "HEAD")
    assert [len(answer.body) for answer in got] == [size, 0, size]


@pytest.mark.parametrize("size", [0, 10, 64 * 1024, 200_000])
@pytest.mark.parametrize("takes", [True, False])
async def test_a_file_with_trailers(tmp_path: Path, size: int, takes: bool) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**TEXT, "trailers": True})
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})
        await send({"type": "http.response.trailers", "headers": [(b"x-one", b"1")]})

    fields = ["TE: trailers"] if takes else []
    async with serving_app(app) as server:
        sent = request("GET", "/", *fields) + request("HEAD", "/", *fields) + closing("GET", "/", *fields)
        received = await raw_answer(server, sent)
    got = answers(received, "GET", "HEAD")
    assert [answer.body for answer in got] == [b"x" * size, b"", b"x" * size]
    assert [answer.fields.get("transfer-encoding") for answer in got] == ["chunked" if takes else None] * 3
    assert received.count(b"\r\n0\r\nx-one: 1\r\n\r\n") == (2 if takes else 0)


@pytest.mark.parametrize("size", [0, 10, 64 * 1024, 200_000])
async def test_a_file_in_chunks(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    async with serving_app(app) as server:
        got = await ask(server, request() + request("HEAD") + closing(), "GET", "HEAD")
        assert [answer.body for answer in got] == [b"x" * size, b"", b"x" * size]
        assert (await raw_answer(server, request(version="1.0"))).endswith(b"\r\n\r\n" + b"x" * size)


@pytest.mark.parametrize("wrong", ["missing", "length", "folder", "pipe"])
async def test_a_file_that_cannot_be_sent_is_a_500(
    file: Path, wrong: str, caplog: pytest.LogCaptureFixture, no_descriptor_leak: None
) -> None:
    os.mkfifo(file.parent / "pipe")
    path = {"missing": file.parent / "none", "length": file, "folder": file.parent, "pipe": file.parent / "pipe"}[wrong]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"5")] if wrong == "length" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(path)})

    async with serving_app(app) as server:
        assert [answer.status for answer in await ask(server, request())] == [500]
        await until(lambda: server.statistics().handler_errors == 1)
    assert len(caplog.records) == 1


async def test_early_hints_come_before_the_response() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]}
        await send(hint)
        await send(TEXT)
        await send(hint)
        await send({**BODY, "more_body": True})
        await send(hint)  # it comes too late, and is ignored
        await send({"type": "http.response.body"})

    async with serving_app(app) as server:
        got = await raw_answer(server, closing())
        assert got.startswith(
            b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\n" * 2
            + b"HTTP/1.1 200 OK\r\n"
        )
        assert b" 103 " not in await raw_answer(server, request(version="1.0"))


async def with_trailers(_scope: Any, _receive: Any, send: Any) -> None:
    await send({**TEXT, "trailers": True})
    await send({**BODY, "more_body": True})
    await send(BODY)
    await send({"type": "http.response.trailers", "headers": [(b"X-One", b"1")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-two", b"2")]})


async def test_trailers_for_a_client_that_takes_them() -> None:
    async with serving_app(with_trailers) as server:
        got = await raw_answer(server, request("GET", "/", "TE: trailers") + closing())
        first, _, second = got.partition(b"0\r\nx-one: 1\r\nx-two: 2\r\n\r\n")
        assert first.endswith(b"\r\n\r\nd\r\nHello, World!\r\nd\r\nHello, World!\r\n")
        assert second.startswith(b"HTTP/1.1 200 OK\r\n")
        assert second.endswith(b"d\r\nHello, World!\r\n0\r\n\r\n")
        assert b"x-one" not in second


async def test_trailers_behind_a_body_of_one_piece() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**TEXT, "trailers": True})
        await send(BODY)
        await send({"type": "http.response.trailers", "headers": [(b"x-one", b"1")]})

    async with serving_app(app) as server:
        got = await raw_answer(server, request("GET", "/", "TE: gzip, Trailers") + closing())
        assert b"\r\n\r\nd\r\nHello, World!\r\n0\r\nx-one: 1\r\n\r\nHTTP/1.1 200 OK\r\n" in got
        assert got.endswith(b"\r\n\r\nHello, World!")


async def test_trailers_that_do_not_come_are_an_error() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**TEXT, "trailers": True})
        await send(BODY)

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request("GET", "/", "TE: trailers"))
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await until(lambda: server.statistics().handler_errors == 1)


# --- the observer, and what is handed over ---


class Observer:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.began_with: list[str] = []
        self.ended_with: list[tuple[str, int, int, str]] = []

    def began(self, scope: dict[str, Any]) -> int:
        self.began_with.append(scope["path"])
        return len(self.began_with)

    def ended(self, token: int, scope: dict[str, Any], status: int, size: int, error: BaseException | None) -> None:
        assert self.began_with[token - 1] == scope["path"]
        self.ended_with.append((scope["path"], status, size, type(error).__name__))


async def test_an_observer_is_told_of_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise LookupError
        await hello(scope, receive, send)

    observer = Observer()
    monkeypatch.setattr(AsgiHandler, "observer", observer)
    async with serving_app(app) as server:
        await raw_answer(server, request("GET", "/a") + request("HEAD", "/b") + closing("GET", "/c"))
        await raw_answer(server, request("GET", "/fails"))
        await until(lambda: len(observer.ended_with) == 4)
    assert observer.ended_with == [
        ("/a", 200, 13, "NoneType"),
        ("/b", 200, 0, "NoneType"),
        ("/c", 200, 13, "NoneType"),
        ("/fails", 500, 0, "LookupError"),
    ]


async def test_a_websocket_handshake_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_over(http: Any, got: Any, scope: dict[str, Any], exchange: Any) -> None:
        rest = http.reader.take_unread()
        await exchange.send({"type": "http.response.start", "status": 403, "headers": []})
        await exchange.send({"type": "http.response.body", "body": rest + got.target + scope["raw_path"]})

    monkeypatch.setattr(AsgiHandler, "websocket", staticmethod(take_over))
    fields = ("Connection: keep-alive, Upgrade", "Upgrade: WebSocket")
    async with serving_app(hello, websockets=False) as server:
        [answer] = await ask(server, request("GET", "/ws", *fields, body=b"frame"))
        assert (answer.status, answer.body, answer.fields["connection"]) == (403, b"frame/ws/ws", "close")
        for offered in (
            ["Upgrade: h2c, websocket"],
            ["Upgrade: WebSocket ,h2c"],
            ["Upgrade: h2c", "Upgrade: websocket"],
        ):
            [answer] = await ask(server, request("GET", "/ws", "Connection: HTTP2-Settings, Upgrade", *offered))
            assert answer.status == 403
        for other in (
            request("POST", "/", *fields),
            request("GET", "/", *fields, version="1.0"),
            request("GET", "/", "Connection: Upgrade", "Upgrade: h2c"),
            request("GET", "/", "Connection: Upgrade", "Upgrade: h2c, websockets"),
            request("GET", "/", "Upgrade: websocket"),
        ):
            first, *_ = await ask(server, other + closing())
            assert first.status == 200


async def test_without_websockets_an_upgrade_is_an_ordinary_request() -> None:
    async with serving_app(hello, websockets=False) as server:
        sent = request("GET", "/", "Connection: Upgrade", "Upgrade: websocket")
        assert [answer.status for answer in await ask(server, sent + closing())] == [200, 200]


async def test_a_state_is_copied_into_each_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    state = {"pool": object()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"])
        scope["state"]["own"] = len(seen)
        await hello(scope, receive, send)

    monkeypatch.setattr(AsgiHandler, "state", state)
    async with serving_app(app) as server:
        await raw_answer(server, request() + closing())
    assert [one["own"] for one in seen] == [1, 2]
    assert all(one["pool"] is state["pool"] for one in seen)
    assert state.keys() == {"pool"}


# --- the parts ---


def test_the_date_is_made_once_a_second() -> None:
    times = iter([1_700_000_000.25, 1_700_000_001.5, 1_699_999_999.0])
    stamp = Stamp(date=True, server="x", wall=lambda: next(times))
    assert stamp.until == -math.inf
    stamp.refresh(10.0)
    assert stamp.tail == b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\nserver: x\r\n\r\n"
    assert stamp.until == pytest.approx(10.75)
    stamp.refresh(11.0)
    assert stamp.tail.startswith(b"date: Tue, 14 Nov 2023 22:13:21 GMT")
    assert stamp.until == pytest.approx(11.5)
    stamp.refresh(11.5)
    assert stamp.tail.startswith(b"date: Tue, 14 Nov 2023 22:13:19 GMT")


def test_a_server_without_a_date_never_makes_one() -> None:
    stamp = Stamp(date=False, server="")
    assert (stamp.tail, stamp.until) == (b"\r\n", math.inf)


@pytest.mark.parametrize("more", [False, True])
def test_the_fields_of_a_response_are_checked_once(more: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def check(name: object) -> bytes:
        checked.append(name)
        return checked_name(name)

    monkeypatch.setattr(_response_heads, "checked_name", check)
    connection = Recorder()
    exchange = exchange_over(connection)
    fields = [(b"X-One", b" 1"), (b"Content-Length", b"\t5 ")]
    start = {"type": "http.response.start", "status": 200, "headers": fields}
    for message in (start, {"type": "http.response.body", "body": b"hello", "more_body": more}):
        assert driven(exchange.send_in_python(message)) == ("returned", "None")
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\nx-one: 1\r\ncontent-length: 5\r\n")
    assert checked == [b"X-One", b"Content-Length"]


def test_the_memory_of_heads_is_bounded_and_holds_no_cookie() -> None:
    memory = HeadMemory()
    make = functools.partial(made_head, 200, minor=1, is_head=False, closes=False, length=5)
    for number in range(2000):
        memory.remember(number, make(headers=[(b"x", b"%d" % number)]))
        assert len(memory) <= 512
    memory.clear()
    memory.remember(1, make(headers=[(b"Set-Cookie", b"secret")]))
    memory.remember(2, make(headers=[(b"date", b"now")]))
    memory.remember(3, make(headers=[(b"connection", b"close")]))
    memory.remember(4, make(headers=[(b"x", b"y" * 2000)]))
    assert not memory


def test_a_length_that_makes_no_sense_is_refused() -> None:
    for lengths in ([b"gzip"], [b"5", b"5"], [b"-5"], [b""], [b"9" * 19]):
        with pytest.raises(ValueError, match=r"response"):
            checked_start(200, [(b"Content-Length", length) for length in lengths])
