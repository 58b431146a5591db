"""ServerConfig, the options of serve(), and what several addresses make of them."""

from __future__ import annotations

import math
import pickle
import socket
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support.certificates import client_context, server_context
from support.pairs import receive_all
from support.servers import LOCAL, connect, echo, serving

import gain_trio
from gain_trio import Connection, Marks, ServerConfig, ServerOptions
from gain_trio._server._server_options import merged

pytestmark = pytest.mark.connections


def test_the_options_of_serve_are_the_fields_of_the_config() -> None:
    fields = attrs.fields_dict(ServerConfig)
    assert ServerOptions.__annotations__.keys() == fields.keys()
    for name, field in fields.items():
        annotation = ServerOptions.__annotations__[name]
        assert getattr(annotation, "__forward_arg__", annotation) == field.type, name


def test_the_defaults() -> None:
    config = ServerConfig()
    assert (config.architecture, config.workers, config.processes) == ("reactor", 1, None)
    assert (config.balancer, config.max_connections, config.idle_timeout) == ("round_robin", None, math.inf)
    with pytest.raises(AttributeError):
        config.workers = 2  # type: ignore[misc]


def test_it_can_be_pickled_and_compared() -> None:
    config = ServerConfig(
        workers=3, balancer="source_ip_hash", marks=Marks(send_high=5), proxy_protocol=["10.0.0.0/8"], idle_timeout=7
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != ServerConfig()


def test_options_beside_a_config_replace_its_values() -> None:
    config = ServerConfig(workers=3, backlog=7)
    assert merged(config, backlog=9) == ServerConfig(workers=3, backlog=9)
    assert merged(None, workers=2) == ServerConfig(workers=2)
    with pytest.raises(TypeError, match=r"must be a gain_trio\.ServerConfig"):
        merged({"workers": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [None, ServerConfig()])
@pytest.mark.parametrize(
    ("name", "cure"), [("worker", r"did you mean workers=\?$"), ("colour", r"fields of gain_trio\.ServerConfig$")]
)
def test_an_option_that_there_is_not_is_named_with_its_like(config: ServerConfig | None, name: str, cure: str) -> None:
    with pytest.raises(TypeError, match=f"a server has no option '{name}': .*{cure}"):
        merged(config, **{name: 1})  # type: ignore[misc]


def test_an_iterator_is_kept() -> None:
    config = ServerConfig(proxy_protocol=iter(["127.0.0.1", "10.0.0.0/8"]))
    assert config.proxy_protocol == ("127.0.0.1/32", "10.0.0.0/8")


class Forgetful:
    """No balancer."""


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("architecture", "sharding", ValueError, "'reactor', 'socket_sharding', not 'sharding'"),
        ("workers", 0, ValueError, "workers must be at least 1"),
        ("workers", 1.5, TypeError, "workers must be a whole number"),
        ("workers", True, TypeError, "workers must be a whole number"),
        ("workers", None, TypeError, "workers must be a whole number"),
        ("processes", 0, ValueError, "processes must be at least 1, or None"),
        ("processes", "all", ValueError, "'auto' for one a CPU"),
        ("balancer", "random", ValueError, "'round_robin', 'least_connections', 'source_ip_hash'"),
        ("balancer", Forgetful(), TypeError, "a method pick"),
        ("balancer", None, TypeError, "a method pick"),
        ("cbpf", 1, TypeError, "cbpf is True or False"),
        ("cbpf", True, ValueError, "architecture='socket_sharding'"),
        ("priority", 20, ValueError, r"-20 \(first\) to 19 \(last\)"),
        ("priority", "high", TypeError, "priority must be a whole number"),
        ("max_connections", 0, ValueError, "max_connections must be at least 1, or None"),
        ("max_connections", 10.0, TypeError, "max_connections must be a whole number"),
        ("backlog", 0, ValueError, "backlog must be at least 1"),
        ("backlog", "many", TypeError, "backlog is a number of connections"),
        ("receive_buffer", 0, ValueError, "receive_buffer is at least 1 byte"),
        ("send_buffer", 2**31, ValueError, "send_buffer is at least 1 byte and at most"),
        ("send_buffer", 1.5, TypeError, "send_buffer is a number of bytes"),
        ("keep_alive", 0.5, ValueError, "keep_alive is 1 to 32767 seconds"),
        ("keep_alive", math.nan, ValueError, "keep_alive is 1 to 32767 seconds"),
        ("keep_alive", True, TypeError, "keep_alive is a number of seconds"),
        ("keep_alive_interval", 5, ValueError, "give keep_alive="),
        ("keep_alive_count", 5, ValueError, "give keep_alive="),
        ("keep_alive_count", 0, ValueError, "keep_alive_count is 1 to 127 probes"),
        ("keep_alive_count", 1.5, TypeError, "keep_alive_count is a number of probes"),
        ("tcp_user_timeout", 0, ValueError, "tcp_user_timeout is 0.001 to 2147483 seconds"),
        ("tcp_user_timeout", "5", TypeError, "tcp_user_timeout is a number of seconds"),
        ("at_max_connections", "drop", ValueError, "'wait', 'refuse', not 'drop'"),
        ("at_max_connections", "refuse", ValueError, "max_connections: give that, too"),
        ("max_connections_per_address", 0, ValueError, "max_connections_per_address must be at least 1, or None"),
        ("user", -1, TypeError, "a name such as 'www-data'"),
        ("user", "", ValueError, "a name such as 'www-data'"),
        ("user", "me:", ValueError, "a name such as 'www-data'"),
        ("user", True, TypeError, "a name such as 'www-data'"),
        ("max_connections_per_worker", 0, ValueError, "at least 1, or None"),
        ("max_connections_per_worker_jitter", 5, ValueError, "give that, too"),
        ("max_connections_per_worker_jitter", -1, ValueError, "at least 0"),
        ("max_connections_per_worker_jitter", 1.5, TypeError, "a whole number"),
        ("max_worker_lifetime", 0, ValueError, "max_worker_lifetime is more than 0 seconds"),
        ("max_worker_memory", "1G", TypeError, "max_worker_memory must be a whole number"),
        ("sd_notify", 1, TypeError, "sd_notify is True or False"),
        ("idle_timeout", 0, ValueError, "more than 0 seconds"),
        ("idle_timeout", math.nan, ValueError, "more than 0 seconds"),
        ("idle_timeout", "5", TypeError, "idle_timeout is a number of seconds"),
        ("marks", 5, TypeError, "gain_trio.Marks"),
        ("mode", 0o1777, ValueError, "at most 0o777"),
        ("mode", "0660", TypeError, "a number such as 0o660"),
        ("owner", 3.5, TypeError, "the owner of a Unix socket is a number, a name or None"),
        ("group", [], TypeError, "the group of a Unix socket is"),
        ("proxy_protocol", "127.0.0.1", TypeError, "a collection such as"),
        ("proxy_protocol", None, TypeError, "a collection such as"),
        ("proxy_timeout", 0, ValueError, "more than 0 seconds"),
        ("proxy_timeout", "1", TypeError, "proxy_timeout is a number of seconds"),
        ("ssl_context", True, TypeError, "ssl.SSLContext"),
        ("ssl_context", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ValueError, "one for clients"),
        ("handshake_timeout", 0, ValueError, "handshake_timeout is more than 0 seconds"),
        ("handshake_timeout", "1", TypeError, "handshake_timeout is a number of seconds"),
        ("strict", "yes", TypeError, "strict is True or False"),
        ("graceful_timeout", -1, ValueError, "at least 0 seconds"),
        ("graceful_timeout", "30", TypeError, "a number of seconds"),
        ("metrics", 9100, TypeError, "metrics is an address"),
        ("metrics", "nonsense", ValueError, "nonsense"),
        ("wokers", 3, TypeError, "wokers"),
    ],
)
async def test_what_makes_no_sense_is_refused(option: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ServerConfig(**{option: value})
    with pytest.raises(error, match=message):
        await gain_trio.serve(echo, LOCAL, **{option: value})  # type: ignore[misc]


def test_descriptors_are_not_passed_through_tls() -> None:
    with pytest.raises(ValueError, match="cannot be encrypted"):
        ServerConfig(pass_fds=True, ssl_context=server_context())


# --- what an option does ---


async def test_serve_takes_a_config(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(workers=3, strict=True)
    async with serving(echo, config=config) as server:
        assert server.statistics().connections_by_consumer == (0, 0, 0)
    async with serving(echo, config=config, workers=2) as server:
        assert server.statistics().connections_by_consumer == (0, 0)


async def test_a_context_can_come_from_a_function() -> None:
    async with serving(echo, ssl_context=server_context) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(
            address, ssl_context=client_context(), server_hostname="localhost"
        ) as client:
            await client.send(b"hello")
            assert await client.receive() == b"hello"


async def test_a_function_that_makes_no_context(no_descriptor_leak: None) -> None:
    def client_side() -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    with pytest.raises(ValueError, match="one for clients"):
        await gain_trio.serve(echo, LOCAL, ssl_context=client_side)


async def test_socket_options_reach_the_connections() -> None:
    found: list[dict[str, Any]] = []

    async def handler(connection: Connection) -> None:
        options = {
            "receive": connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            "send": connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            "keep_alive": connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "idle": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "between": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            "count": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            "user_timeout": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            "no_delay": connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
        }
        found.append(options)

    probes = {"keep_alive": 60, "keep_alive_interval": 4.5, "keep_alive_count": 3, "tcp_user_timeout": 12.25}
    for options in ({}, {"receive_buffer": 30_000, "send_buffer": 40_000, "keep_alive": 12.5}, probes):
        async with serving(handler, **options) as server, await connect(server) as client:
            assert await receive_all(client) == b""
    plain, told, probed = found
    assert [probed[name] for name in ("idle", "between", "count", "user_timeout")] == [60, 5, 3, 12250]
    assert (told["user_timeout"], told["count"]) == (0, plain["count"])
    assert (told["receive"], told["send"]) == (60_000, 80_000), "Linux doubles them"
    assert (told["idle"], told["between"]) == (13, 13)
    assert told["keep_alive"]
    assert not plain["keep_alive"]
    assert plain["no_delay"]
    assert told["no_delay"]
    assert plain["receive"] != told["receive"]


# --- several addresses ---


async def test_several_addresses(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    addresses = [LOCAL, f"unix://{path}", "tcp://127.0.0.2:0"]
    async with serving(echo, addresses, mode=0o600, keep_alive=60, workers=2) as server:
        first, unix, second = server.addresses
        assert (first[0], unix, second[0]) == ("127.0.0.1", str(path), "127.0.0.2")
        assert path.stat().st_mode & 0o777 == 0o600
        for where in (f"tcp://127.0.0.1:{first[1]}", f"unix://{path}", f"tcp://127.0.0.2:{second[1]}"):
            async with await gain_trio.connect(where) as client:
                await client.send(b"hello")
                assert await client.receive() == b"hello"
        assert server.statistics().accepted == 3
        assert max(server.statistics().connections_by_consumer) == 2, "one balancer for all of them"
    assert not path.exists()


@pytest.mark.parametrize(
    ("addresses", "options", "message"),
    [
        ([], {}, "needs an address"),
        ([LOCAL, "127.0.0.1:80"], {}, "is not an address"),
        ([LOCAL, LOCAL], {"mode": 0o600}, "mode, owner and group are for the file of a Unix socket"),
        (["unix://@a", "unix://@b"], {"reuse_port": True}, "reuse_port=True is for TCP"),
        (["unix://@a"], {"keep_alive": 60}, "keep_alive is for TCP"),
        ([LOCAL, "unix://@a"], {"mode": 0o600}, "is an abstract name"),
        ([LOCAL, "unix://@a"], {"architecture": "socket_sharding"}, "socket sharding is for TCP"),
        (["fd://3"], {"receive_buffer": 5000}, r"set by the process that opened the socket \(ReceiveBuffer="),
    ],
)
async def test_what_addresses_have_no_use_for(addresses: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await gain_trio.serve(echo, addresses, **options)


@pytest.mark.parametrize("address", [None, 5, [None], [b"tcp://127.0.0.1:0"]])
async def test_what_is_no_address_at_all(address: Any) -> None:
    with pytest.raises(TypeError, match="an address is a string such as"):
        await gain_trio.serve(echo, address)


def test_one_address_that_cannot_be_had_closes_the_others(no_descriptor_leak: None, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(echo) as server:
            busy = f"tcp://127.0.0.1:{server.addresses[0][1]}"
            with pytest.raises(OSError, match="cannot listen on"):
                await gain_trio.serve(echo, [LOCAL, f"unix://{tmp_path}/app.sock", busy])

    trio.run(main)
    assert not list(tmp_path.iterdir())
