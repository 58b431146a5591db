"""The flags of ``gain-trio serve`` that stand beside the fields of ServerConfig, and callbacks' names for the same."""

from __future__ import annotations

import argparse
import math
import re
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import lifespans
from support.certificates import authority, certificate

from gain_trio import ServerConfig
from gain_trio._command._serve_options import add_arguments, config_of
from gain_trio._server import flags_of
from gain_trio.callbacks import Config
from gain_trio.callbacks._event_config import FIELDS, serve_options

pytestmark = pytest.mark.no_run

FLAGS = flags_of(ServerConfig)
GIVEN: dict[str, tuple[list[str], Any]] = {
    "architecture": (["socket_sharding"], "socket_sharding"),
    "workers": (["3"], 3),
    "processes": (["auto"], "auto"),
    "balancer": (["source_ip_hash"], "source_ip_hash"),
    "cbpf": (["--architecture", "socket_sharding"], True),
    "cpu_affinity": ([], True),
    "priority": (["-5"], -5),
    "max_connections": (["9"], 9),
    "backlog": (["7"], 7),
    "idle_timeout": (["1.5"], 1.5),
    "close_timeout": (["2"], 2.0),
    "graceful_timeout": (["0"], 0.0),
    "worker_timeout": (["none"], None),
    "metrics": (["tcp://127.0.0.1:0"], "tcp://127.0.0.1:0"),
    "control": (["/run/app/control.sock"], "/run/app/control.sock"),
    "lifespan": (["support.lifespans:named"], lifespans.named),
    "at_max_connections": (["refuse", "--max-connections", "9"], "refuse"),
    "max_connections_per_address": (["3"], 3),
    "reuse_port": ([], True),
    "receive_buffer": (["4096"], 4096),
    "send_buffer": (["8192"], 8192),
    "keep_alive": (["60"], 60.0),
    "keep_alive_interval": (["5", "--keep-alive", "60"], 5.0),
    "keep_alive_count": (["3", "--keep-alive", "60"], 3),
    "tcp_user_timeout": (["12.5"], 12.5),
    "mode": (["660"], 0o660),
    "owner": (["www-data"], "www-data"),
    "group": (["33"], 33),
    "user": (["www-data:adm"], "www-data:adm"),
    "proxy_protocol": (["127.0.0.1, 10.0.0.0/8"], ("127.0.0.1/32", "10.0.0.0/8")),
    "proxy_timeout": (["1.5"], 1.5),
    "handshake_timeout": (["5"], 5.0),
    "strict": ([], True),
    "max_connections_per_worker": (["1000"], 1000),
    "max_connections_per_worker_jitter": (["100", "--max-connections-per-worker", "1000"], 100),
    "max_worker_lifetime": (["3600"], 3600.0),
    "max_worker_memory": (["512M"], 512 << 20),
}


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["tcp://127.0.0.1:0", "--handler", "echo", *arguments])


def test_without_flags_a_server_has_the_defaults_of_the_fields() -> None:
    assert config_of(parsed()) == ServerConfig(signals=True, sd_notify=True)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_sets_the_field_that_it_stands_beside(name: str) -> None:
    arguments, value = GIVEN[name]
    config = config_of(parsed(f"--{(FLAGS[name].name or name).replace('_', '-')}", *arguments))
    assert getattr(config, name) == value != getattr(ServerConfig(), name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--socket-mode", "rw"], "'rw' is no permissions in octal, such as 660"),
        (["--max-worker-memory", "much"], "'much' is no number of bytes, such as 512M"),
        (["--max-worker-memory", "M"], "'M' is no number of bytes"),
        (["--at-max-connections", "drop"], "invalid choice: 'drop'"),
        (["--proxy-timeout", "long"], "'long' is not a number of seconds"),
    ],
)
def test_an_argument_that_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--proxy-protocol", "somewhere"], "proxy_protocol names who may send a header, by address or network"),
        (["--at-max-connections", "refuse"], "about the clients beyond max_connections: give that, too"),
        (["--keep-alive-count", "3"], "give keep_alive=, too"),
        (["--max-connections-per-worker-jitter", "3"], "give that, too"),
        (["--tls-client-ca", "ca.pem"], "give --tls-cert, too"),
    ],
)
def test_arguments_that_make_no_sense_together(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(parsed(*arguments))


def test_all_peers_may_send_a_header() -> None:
    assert config_of(parsed("--proxy-protocol", "all")).proxy_protocol is True


def test_the_certificates_of_clients(tmp_path: Path) -> None:
    certificate().private_key_and_cert_chain_pem.write_to_path(tmp_path / "served.pem")
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ["--tls-cert", str(tmp_path / "served.pem"), "--tls-client-ca"]
    source: Any = config_of(parsed(*tls, str(tmp_path / "ca.pem"))).ssl_context
    context = source()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ValueError, match=r"no certificates of authorities in .*empty\.pem: --tls-client-ca"):
        config_of(parsed(*tls, str(tmp_path / "empty.pem")))
    with pytest.raises(ValueError, match=r"cannot read .*none, the file of --tls-client-ca: No such file"):
        config_of(parsed(*tls, str(tmp_path / "none")))


def test_the_help_has_the_default_of_a_number() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for name, flag in FLAGS.items():
        default = attrs.fields_dict(ServerConfig)[name].default
        if isinstance(default, float) and math.isfinite(default):
            assert f"{flag.help} ({flag.usual or format(default, 'g')})" in text


def test_options_of_callbacks_are_those_of_servers_or_have_a_name_of_their_own() -> None:
    changed: dict[str, Any] = {
        "architecture": "socket_sharding",
        "workers": 2,
        "cbpf": True,
        "cpu_affinity": True,
        "load_balancing": "least_connections",
        "socket_recv_buffer_size": 4096,
        "socket_send_buffer_size": 8192,
        "tcp_keep_alive": 30,
    }
    assert changed.keys() <= FIELDS
    options = serve_options(Config(**changed), {})
    assert ServerConfig(**options) == ServerConfig(
        architecture="socket_sharding",
        workers=2,
        cbpf=True,
        cpu_affinity=True,
        processes="auto",
        balancer="least_connections",
        receive_buffer=4096,
        send_buffer=8192,
        keep_alive=30,
    )
    assert serve_options(Config(), {"backlog": 5}) == {"backlog": 5}
    assert serve_options(Config(workers=2), {"workers": 4})["workers"] == 4
