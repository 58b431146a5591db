"""Options, flags, files, addresses and variables that are wrong: one line that names them, and what to do."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.certificates import authority, certificate
from support.pairs import address_of
from support.processes import command

import gain_trio
from gain_trio import Marks, RingOptions, ServerConfig
from gain_trio._acceleration._piece_choice import resolve as resolve_pieces
from gain_trio._command._flag_words import in_flags
from gain_trio._io_manager._backend_choice import resolve as resolve_backend
from gain_trio._io_manager._manager import resume_in_place_default
from gain_trio._ring._options import unwanted_default
from gain_trio._server import flags_of
from gain_trio.asgi import AsgiConfig
from gain_trio.callbacks import Config
from gain_trio.testing import connection_pair

pytestmark = pytest.mark.connections

ANY = "tcp://127.0.0.1:0"
LONGEST = 400
"""Characters of a message."""

# --- fields ---

CONFIGS: list[Any] = [ServerConfig, AsgiConfig, Marks, RingOptions, Config]
FIELDS = [(config, field.name) for config in CONFIGS for field in attrs.fields(config)]


@pytest.mark.parametrize(("config", "name"), FIELDS, ids=[f"{config.__name__}.{name}" for config, name in FIELDS])
def test_a_field_refuses_what_it_cannot_be_and_is_named(config: Any, name: str) -> None:
    wrong: list[object] = [object(), b"x", [], {}, math.nan, (1, 2), -0.5]
    for value in wrong:
        with pytest.raises((TypeError, ValueError)) as caught:
            config(**{name: value})
        text = str(caught.value)
        assert name in text or (name == "forwarded_allow_ips" and "trusted proxies" in text) or "no proxy is" in text
        assert "\n" not in text
        assert len(text) < LONGEST


@pytest.mark.parametrize("name", ["workers", "processes"])
def test_a_slip_of_many_digits_starts_no_such_number(name: str) -> None:
    options: dict[str, Any] = {name: 10**20}
    with pytest.raises(ValueError, match=f"{name} must be at most 4096"):
        ServerConfig(**options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cbpf": True}, "cbpf=True chooses among the listeners of architecture='socket_sharding'"),
        ({"keep_alive_count": 3}, "give keep_alive=, too"),
        ({"at_max_connections": "refuse"}, "give that, too"),
        ({"max_connections_per_worker_jitter": 3}, "give that, too"),
        ({"owner": -1, "mode": 0o660}, "the owner of a Unix socket is a number of at least 0"),
        ({"group": ""}, "the group of a Unix socket is a number of at least 0, a name or None"),
        ({"proxy_protocol": ["10.0.0.1/8"]}, "10.0.0.1/8 has host bits set: write 10.0.0.0/8"),
        ({"proxy_protocol": ["localhost"]}, "write 10.0.0.1 or 10.0.0.0/8 for example"),
        ({"metrics": "9100"}, "metrics is an address: '9100' is not an address: it has no scheme; write tcp://"),
    ],
)
def test_options_that_contradict_each_other_name_the_cure(options: dict[str, Any], reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(reason)):
        ServerConfig(**options).socket_options().access  # noqa: B018 - it is computed


# --- the command ---


def fails(*arguments: object, cwd: Path | None = None) -> str:
    """Run the command, which must fail, and return its only line."""
    status, out, err = command(*map(str, arguments), cwd=cwd)
    assert out == ""
    assert err.count("\n") == 1, err
    if status == 2:  # of argparse
        return err[:-1]
    assert status == 1
    assert err.startswith("gain-trio: ")
    return err[len("gain-trio: ") : -1]


FLAGS = {name: flag for name, flag in flags_of(ServerConfig).items() if flag.parse in {int, float}}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["x", "", "1,5"])
def test_a_flag_that_wants_a_number_says_so(name: str, value: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    line = fails("serve", ANY, "--handler", "echo", f"{flag}={value}")
    kind = "a number of seconds" if FLAGS[name].parse is float else "a whole number"
    assert re.fullmatch(rf"gain-trio serve: error: argument {flag}: '{value}' is (not|neither) {kind}.*", line)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workers=0"], "--workers must be at least 1, not 0"),
        (["--max-connections=0"], "--max-connections must be at least 1, not 0"),
        (["--idle-timeout=0"], "--idle-timeout is more than 0 seconds, not 0.0"),
        (
            ["--priority=3"],
            "--cpu-affinity and --priority are for worker processes, and there are none: give --processes, too",
        ),
        (["--cbpf"], "--cbpf chooses among the listeners of --architecture socket_sharding"),
        (
            ["--at-max-connections=refuse"],
            "--at-max-connections refuse is about the clients beyond --max-connections: give that, too",
        ),
        (
            ["--keep-alive-count=3"],
            "--keep-alive-count is of the probes that --keep-alive asks for: give --keep-alive, too",
        ),
        (["--proxy-timeout=3"], "--proxy-timeout is for --proxy-protocol, which is not given"),
        (["--handshake-timeout=3"], "--handshake-timeout is for TLS: give --tls-cert, too"),
        (["--worker-timeout=3"], "--worker-timeout is for worker processes, and there are none: give --processes, too"),
        (
            ["--balancer=round_robin", "--architecture=socket_sharding"],
            "--balancer is for --architecture reactor: with socket_sharding the kernel distributes",
        ),
        (["--user=no-such-user"], "--user no-such-user: there is no user 'no-such-user'"),
        (
            ["--socket-mode=660"],
            "--socket-mode, --socket-owner and --socket-group are for the file of a Unix socket, and",
        ),
        (
            ["--proxy-protocol=x"],
            "--proxy-protocol names who may send a header, by address or network: 'x' does not appear",
        ),
        (["--metrics=9100"], "--metrics is an address: '9100' is not an address: it has no scheme; write tcp://"),
        (["--control=unix:///x"], "gain-trio serve: error: argument --control: write the path alone, '/x'"),
        (["--control="], "gain-trio serve: error: argument --control: a path is wanted, and this is an empty one"),
        (["--tls-key=x"], "--tls-key is the key of a certificate: give --tls-cert, too"),
        (["--tls-cert=/nonexistent"], "cannot read /nonexistent, the file of --tls-cert: No such file or directory"),
        (["--tls-cert=/"], "cannot read /, the file of --tls-cert: Is a directory"),
    ],
)
def test_the_command_names_flags_and_cures(arguments: list[str], reason: str) -> None:
    assert fails("serve", ANY, "--handler", "echo", *arguments).startswith(reason)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module ``misused``."""
    (tmp_path / "misused.py").write_text(
        "async def handler(connection): ...\n"
        "async def app(scope, receive, send): ...\n"
        "def make_app(): return app\n"
        "async def two(scope, receive): ...\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", ANY, "--handler=misused:handle"], "the module 'misused' has no 'handle': did you mean 'handler'?"),
        (["serve", ANY, "--handler=./misused.py:handler"], "is named by its module: write misused:handler"),
        (["serve", ANY, "--handler=misuse:handler"], "it is looked for in the current folder and on PYTHONPATH"),
        (
            ["asgi", "misused.py:app", ANY],
            "what is served is named by its module: write misused:app",
        ),
        (["asgi", "misused:apps", ANY], "the module 'misused' has no 'apps': did you mean 'app'?"),
        (["asgi", "misuse:app", ANY], "it is looked for in --app-dir, the current folder, and on PYTHONPATH"),
        (["asgi", "misused:make_app", ANY], "if it returns the app, give --factory"),
        (
            ["asgi", "misused:app", ANY, "--factory"],
            "--factory calls a function without arguments, which returns the app",
        ),
        (["asgi", "misused:two", ANY], "is called with (scope, receive, send): too many positional arguments"),
        (["asgi", "misused:app", ANY, "--app-dir=nonexistent"], "--app-dir is a folder, and there is none of the name"),
    ],
)
def test_a_name_that_names_nothing_to_serve_says_what_to_write(arguments: list[str], reason: str, folder: Path) -> None:

    assert reason in fails(*arguments, cwd=folder)


# --- the files of TLS ---


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files for TLS, good and bad."""
    pem = certificate()
    paths = {name: tmp_path / name for name in ("chain", "key", "other_key", "both", "text", "locked", "damaged", "ca")}
    chain = b"".join(blob.bytes() for blob in pem.cert_chain_pems)
    paths["chain"].write_bytes(chain)
    paths["key"].write_bytes(pem.private_key_pem.bytes())
    paths["other_key"].write_bytes(authority().issue_cert("localhost").private_key_pem.bytes())
    paths["both"].write_bytes(pem.private_key_and_cert_chain_pem.bytes())
    paths["text"].write_text("hello")
    paths["damaged"].write_bytes(chain.replace(b"MII", b"MIX"))
    paths["ca"].write_bytes(authority().cert_pem.bytes())
    unlock = ["openssl", "pkey", "-in", paths["key"], "-aes256", "-passout", "pass:secret", "-out", paths["locked"]]
    subprocess.run(unlock, check=True, capture_output=True, timeout=60)
    return paths


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"cert": "text"},
            r"there is no certificate in .*text: --tls-cert is a PEM file, with -----BEGIN CERTIFICATE-----",
        ),
        ({"cert": "chain"}, r"there is no private key in .*chain: give its file by --tls-key"),
        ({"cert": "key", "key": "chain"}, r"there is no certificate in .*key: --tls-cert is a PEM file"),
        ({"cert": "chain", "key": "text"}, r"there is no private key in .*text: --tls-key is a PEM file"),
        (
            {"cert": "chain", "key": "other_key"},
            r"the private key in .*other_key is not that of the first certificate in ",
        ),
        (
            {"cert": "chain", "key": "locked"},
            r"the private key in .*locked is encrypted, .*: openssl pkey -in .*locked ",
        ),
        ({"cert": "damaged", "key": "key"}, r"the certificate in .*damaged, or the private key in .*, is damaged .*"),
        (
            {"cert": "both", "client-ca": "text"},
            r"there are no certificates of authorities in .*text: --tls-client-ca is",
        ),
    ],
)
def test_a_file_of_tls_that_is_none_is_named(given: dict[str, str], reason: str, files: dict[str, Path]) -> None:
    flags = [f"--tls-{name}={files[which]}" for name, which in given.items()]
    assert re.match(reason, fails("serve", ANY, "--handler", "echo", *flags))


# --- addresses ---


@contextlib.contextmanager
def busy_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield str(other.getsockname()[1])


def test_a_busy_port_says_how_to_find_the_other_program() -> None:
    with busy_port() as port:
        for flags in ([f"tcp://127.0.0.1:{port}"], [ANY, f"--metrics=tcp://127.0.0.1:{port}"]):
            line = fails("serve", "--handler=echo", *flags)
            assert line == (
                f"cannot listen on tcp://127.0.0.1:{port}: Address already in use; "
                f"another program listens there: ss -ltnp 'sport = :{port}' names it"
            )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://192.0.2.1:0", r".*Cannot assign requested address; no interface of this machine has that address: .*"),
        (
            "tcp://no-such-host.invalid:0",
            r".*; write the host's address in place of its name, or look the name up: .*",
        ),
        ("unix:///no/such/folder/socket", r".*No such file or directory; the folder does not exist: make it, or .*"),
        ("fd://999", r".*descriptor 999.*"),
        ("fd://systemd", r".*start the program by a \.socket unit, or try it with systemd-socket-activate"),
    ],
)
def test_an_address_that_cannot_be_listened_on_names_the_cure(address: str, reason: str) -> None:
    line = fails("serve", address, "--handler=echo")
    assert line.startswith(f"cannot listen on {address}: ")
    assert re.fullmatch(reason, line)


def test_a_privileged_port_names_what_it_takes(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys\n"
        "from gain_trio._command._cli import main\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for capability in range(64):\n"
        "    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP\n"
        "class Header(ctypes.Structure):\n"
        "    _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]\n"
        "none = (ctypes.c_uint32 * 6)()\n"
        "assert libc.capset(ctypes.byref(Header(0x20080522, 0)), none) == 0\n"
        "sys.exit(main(['serve', 'tcp://127.0.0.1:81', '--handler=echo']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    if "Permission denied" not in done.stderr:
        pytest.skip(f"every user may listen on port 81 here: {done.stderr}")
    assert done.returncode == 1
    assert done.stderr == (
        "gain-trio: cannot listen on tcp://127.0.0.1:81: Permission denied; a port below 1024 takes root, "
        "CAP_NET_BIND_SERVICE, or a .socket unit of systemd (fd://systemd)\n"
    )


# --- environment variables ---

VARIABLES: dict[str, Callable[[], object]] = {
    "GAIN_TRIO_BACKEND": lambda: resolve_backend("auto"),
    "GAIN_TRIO_UNWANTED": unwanted_default,
    "GAIN_TRIO_RESUME_IN_PLACE": resume_in_place_default,
    "GAIN_TRIO_ACCELERATE": resolve_pieces,
}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_is_wrong_is_named_and_one_that_is_empty_is_not_set(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    usual = VARIABLES[variable]()
    monkeypatch.setenv(variable, "")
    assert VARIABLES[variable]() == usual
    monkeypatch.setenv(variable, "yes please")
    with pytest.raises(ValueError, match=variable) as caught:
        VARIABLES[variable]()
    assert re.search(r"must be|it may have|the pieces are", str(caught.value))


# --- words ---


@pytest.mark.parametrize(
    ("message", "in_words"),
    [
        ("workers must be at least 1, not 0", "--workers must be at least 1, not 0"),
        ("give processes=, too", "give --processes, too"),
        ("mode is of a file", "--socket-mode is of a file"),
        ("there is no user 'x' in this group", "there is no user 'x' in this group"),
        ("--max-connections max_connections", "--max-connections --max-connections"),
        ("app_lifespan is one of 'auto', 'on', 'off', not 'x'", "--lifespan is one of 'auto', 'on', 'off', not 'x'"),
        ("user-defined", "user-defined"),
        ("workers and user-defined names", "--workers and user-defined names"),
        ("mode, owner and group are of a file", "--socket-mode, --socket-owner and --socket-group are of a file"),
        ("cpu_affinity and priority are for it", "--cpu-affinity and --priority are for it"),
        ("workers and some others", "--workers and some others"),
    ],
)
def test_a_message_is_put_in_the_words_of_the_command_line(message: str, in_words: str) -> None:
    assert in_flags(message) == in_words


# --- arguments ---


@pytest.mark.parametrize("wrong", [object(), 5, "", [], True])
async def test_arguments_of_the_wrong_type_are_named(wrong: Any) -> None:
    [listener] = await gain_trio.open_listeners(ANY)
    async with listener:
        address = address_of(listener)
        for name in ("marks", "https_compatible", "pass_fds"):
            context = True if name == "https_compatible" else None
            if not (wrong is True and name != "marks"):
                with pytest.raises(TypeError, match=f"{name} (is|must be) .*, not "):
                    await gain_trio.connect(address, ssl_context=context, **{name: wrong})
        for name in ("marks", "reuse_port"):
            if not (wrong is True and name != "marks"):
                with pytest.raises(TypeError, match=f"{name} (is|must be) .*, not "):
                    await gain_trio.open_listeners(ANY, **{name: wrong})
        with pytest.raises(TypeError, match=r"marks must be gain_trio\.Marks"):
            connection_pair(peer_marks=wrong)
        with socket.socket() as sock:
            sock.connect(listener.local_address)
            with pytest.raises(TypeError, match=r"marks must be gain_trio\.Marks"):
                gain_trio.Connection.from_socket(sock, marks=wrong)
