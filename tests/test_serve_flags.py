"""The flags of ``gain-trio serve`` that stand beside the fields of ServerConfig, and callbacks' names for the same."""

from __future__ import annotations

import argparse
import math
from typing import Any

import attrs
import pytest
from support import lifespans

from gain_trio import ServerConfig
from gain_trio._command._serve_options import add_arguments, config_of
from gain_trio._server import flags_of
from gain_trio.callbacks import Config
from gain_trio.callbacks._event_config import FIELDS, serve_options

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
    "lifespan": (["support.lifespans:named"], lifespans.named),
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
    config = config_of(parsed(f"--{name.replace('_', '-')}", *arguments))
    assert getattr(config, name) == value != getattr(ServerConfig(), name)


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
