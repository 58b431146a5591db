"""serve(user=...): what a server is when its sockets are open.  What takes root is skipped without it."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.pairs import receive_all
from support.processes import connect, running
from support.servers import LOCAL, echo, serving
from support.servers import connect as connect_to

import gain_trio
from gain_trio import Connection, ServerConfig
from gain_trio._server import _privileges
from gain_trio._server._privileges import Identity, identity_of, socket_options_of
from gain_trio._transports import parse_address
from gain_trio._transports._addresses._socket_options import options_for

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def hidden_places() -> dict[Path, set[str]]:
    """Folders that only root may go through, with the names below them that lead to this interpreter and to the package."""
    found: dict[Path, set[str]] = {}
    for place in (sys.base_prefix, sys.prefix, gain_trio.__file__):
        path = Path(place).resolve()
        for folder, child in zip(reversed(path.parents), [*[*reversed(path.parents)][1:], path], strict=True):
            if not folder.stat().st_mode & stat.S_IXOTH:
                found.setdefault(folder, set()).add(child.name)
                break
    return found


SHOWING = """
import ctypes, json, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) != 0:  # CLONE_NEWNS
    sys.exit(f"no mount namespace: {ctypes.get_errno()}")
aside, places = json.loads(sys.argv.pop(1))
mount = ["mount", "--make-rprivate", "/"]
subprocess.run(mount, check=True)
for folder, names in places.items():
    subprocess.run(["mount", "--rbind", folder, aside], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", folder], check=True)
    for name in names:
        subprocess.run(["mkdir", f"{folder}/{name}"], check=True)
        subprocess.run(["mount", "--rbind", f"{aside}/{name}", f"{folder}/{name}"], check=True)
from gain_trio._command._cli import main
sys.exit(main())
"""
"""The command in a mount namespace of its own, in which every user can run this interpreter."""


def command_that_every_user_can_run(folder: Path) -> list[str]:
    """The command, for a process of root's whose worker processes are another user's."""
    places = hidden_places()
    if not places:
        return ["-m", "gain_trio"]
    (folder / "aside").mkdir()
    script = folder / "showing.py"
    script.write_text(SHOWING)
    shown = {str(place): sorted(names) for place, names in places.items()}
    return [str(script), json.dumps([str(folder / "aside"), shown])]


async def tell_user(connection: Connection) -> None:
    await connection.send(f"{os.getresuid()} {os.getresgid()} {os.getgroups()}".encode())


def test_a_user_with_its_groups() -> None:
    found = identity_of("nobody")
    assert (found.user, found.group) == (65534, 65534)
    assert found.group in found.groups
    assert identity_of("nobody:root") == Identity("nobody:root", 65534, 0, tuple(os.getgrouplist("nobody", 0)))
    assert identity_of(65534).user == identity_of("65534").user == 65534
    assert identity_of("4711:4712") == Identity("4711:4712", 4711, 4712, (4712,))


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("no-such-user", "there is no user 'no-such-user'$"),
        ("nobody:no-such-group", "there is no group 'no-such-group'"),
        (4711, "there is no user '4711'; a number that is no user needs a group, too: '1000:1000'"),
    ],
)
async def test_a_user_that_there_is_not(user: Any, message: str) -> None:
    for more in ({}, {"processes": 1}):
        with pytest.raises(ValueError, match=message):
            await gain_trio.serve(echo, LOCAL, user=user, **more)


async def test_who_one_is_already() -> None:
    async with serving(tell_user, user=os.getuid()) as server:
        client = await connect_to(server)
        assert await receive_all(client) == f"{os.getresuid()} {os.getresgid()} {os.getgroups()}".encode()
        await client.aclose()


async def test_without_root_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_ids: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_privileges.os, "setgroups", refuse)
    with pytest.raises(PermissionError, match=r"cannot become the user .*: .*it takes root \(CAP_SETUID"):
        await gain_trio.serve(echo, LOCAL, user="nobody")


def test_the_order_is_groups_group_user(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    def call(name: str, *ids: Any) -> None:
        calls.append((name, ids))
        if len(calls) > 3:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(_privileges.os, name, functools.partial(call, name))
    Identity("4711:4712", 4711, 4712, (4712, 4713)).take()
    assert calls == [
        ("setgroups", ((4712, 4713),)),
        ("setresgid", (4712, 4712, 4712)),
        ("setresuid", (4711, 4711, 4711)),
        ("setgroups", ((4712, 4713),)),  # to see that it is not possible any more
    ]


@pytest.mark.parametrize(
    ("addresses", "options", "owners"),
    [
        (["tcp://127.0.0.1:80"], {}, [(None, None)]),
        (["unix:///run/app"], {}, [(4711, 4712)]),
        (["tcp://127.0.0.1:80", "unix:///run/app"], {"owner": "nobody"}, [(None, None), ("nobody", 4712)]),
        (["unix://@app"], {}, [(None, None)]),
        (["unix://@app", "unix:///run/app"], {}, [(None, None), (4711, 4712)]),
    ],
)
def test_the_file_of_a_unix_socket_is_the_users(addresses: list[str], options: dict[str, Any], owners: Any) -> None:
    parsed = [parse_address(address, schemes=("tcp", "unix")) for address in addresses]
    found = options_for(parsed, socket_options_of(ServerConfig(**options), Identity("", 4711, 4712, ())))
    assert [(each.owner, each.group) for each in found] == owners
    assert socket_options_of(ServerConfig(**options), None) == ServerConfig(**options).socket_options()


@pytest.mark.parametrize("user", [2**32 - 1, f"nobody:{2**32 - 1}", f"{2**40}:1"])
def test_a_number_that_is_none_of_a_user(user: Any) -> None:
    """The largest one would leave the process root: setresuid(2) takes it for no change."""
    with pytest.raises(ValueError, match="the numbers of users and groups are at most 4294967294"):
        identity_of(user)


def test_a_user_namespace_that_does_not_have_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_ids: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(_privileges.os, "setgroups", refuse)
    with pytest.raises(OSError, match=r"cannot become the user 4711:4712: Invalid argument; a user namespace"):
        Identity("4711:4712", 4711, 4712, (4712,)).take()


@as_root
@pytest.mark.parametrize(
    ("kept", "is_refused"),
    [([], False), (["--securebits", "+no_setuid_fixup"], True)],
    ids=["root", "with secure bits"],
)
def test_a_process_that_could_become_root_again_is_refused(kept: list[str], is_refused: bool) -> None:
    code = """
from gain_trio._server._privileges import Identity
import os
try:
    Identity("4711:4712", 4711, 4712, (4712,)).take()
except PermissionError as error:
    print(error.strerror)
else:
    print("gone", os.getresuid(), os.getgroups())
"""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv(1)")
    command = [setpriv, *kept, sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("could become another one again" in said) is is_refused
    assert (said.strip() == "gone (4711, 4711, 4711) [4712]") is not is_refused


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--processes", "1"]], ids=["alone", "with worker processes"])
def test_a_server_that_root_has_started(more: list[str], tmp_path: Path) -> None:
    """It has a port and a Unix socket that are root's to open, and handlers run as the user."""
    # The handler is built in, because the user cannot read the folder that pytest has made.
    command = command_that_every_user_can_run(tmp_path) if more else ["-m", "gain_trio"]
    path = tmp_path / "s"
    metrics = tmp_path / "metrics"
    arguments = ["tcp://127.0.0.1:0", f"unix://{path}", "--handler", "echo", "--user", "nobody", *more]
    arguments += ["--metrics", f"unix://{metrics}"]
    with running(*command, "serve", *arguments) as program:
        line = program.line()
        if not line and "no mount namespace" in (errors := program.end()[2]):
            pytest.skip(f"the user cannot run this interpreter, and there is {errors}")
        port = int(line.split(":")[-1].partition(";")[0])
        program.line()
        for found in (path.stat(), metrics.stat()):
            assert (found.st_uid, found.st_gid, stat.S_ISSOCK(found.st_mode)) == (65534, 65534, True)
        with connect("127.0.0.1", port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        tasks = Path(f"/proc/{program.pid}/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
        assert bool(children) is bool(more)
        for pid in (program.pid, *children):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = dict(line.split(":\t") for line in lines if ":\t" in line)
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert "0" not in status["Groups"].split()
        program.interrupt(signal.SIGTERM)
        status_code, _out, err = program.end()
    assert status_code == 0
    assert not err or "cannot remove the Unix socket" in err
