"""``gain-trio seccomp``: the subcommand."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from pathlib import Path

from ._parsing import Subparsers, fail, show
from ._seccomp import ARCHITECTURES, ProfileError, allow_io_uring, parse, render, resolve

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The names in :data:`ARCHITECTURES` by ``uname -m``, where the two differ."""

_DESCRIPTION = """\
Make a seccomp profile for containers that allows io_uring: read the default
profile of the container runtime, allow io_uring_setup, io_uring_enter and
io_uring_register in it, and keep everything else. A profile that allows them
already comes out as it went in.

Know what you allow: see "Running in containers" in the documentation.
"""

_EPILOG = """\
where the default profiles are:
  Docker      https://github.com/moby/profiles/blob/main/seccomp/default.json
              (older releases: profiles/seccomp/default.json of moby/moby)
  Podman      /usr/share/containers/seccomp.json
  Kubernetes  has none as a file; take Docker's, with --oci

examples:
  gain-trio seccomp /usr/share/containers/seccomp.json -o io_uring.json
  podman run --security-opt seccomp=io_uring.json ...
"""


def add_parser(commands: Subparsers) -> None:
    """Add the arguments of ``seccomp``."""
    seccomp = commands.add_parser(
        "seccomp",
        help="make a container's seccomp profile that allows io_uring",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    seccomp.add_argument("base", metavar="BASE.json", help="the runtime's default profile; - for standard input")
    seccomp.add_argument("-o", "--output", metavar="FILE", help="where to write it (standard output)")
    plain = seccomp.add_argument_group("for runtimes that know no conditions, as containerd under Kubernetes")
    plain.add_argument(
        "--oci", action="store_true", help="write the plain OCI form: resolve includes, excludes and archMap"
    )
    plain.add_argument(
        "--architecture", choices=sorted(ARCHITECTURES), help="resolve for this architecture (that of this machine)"
    )
    plain.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="CAP_NAME",
        help="resolve for a container that may hold this capability; may be given several times (none)",
    )
    seccomp.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Write the profile, and return the exit status."""
    base: str = options.base
    try:
        text = (sys.stdin.buffer.read() if base == "-" else Path(base).read_bytes()).decode("utf-8")
        made, summary = _make(text, options)
        if options.output is None:
            show(made)
        else:
            write_atomically(Path(options.output), made)
    except UnicodeDecodeError:
        return fail(f"{base}: it is not UTF-8")
    except ProfileError as error:
        return fail(f"{base}: {error}")
    except ValueError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or base}: {error.strerror or error}")
    print(f"gain-trio: {summary}", file=sys.stderr)
    return 0


def _make(text: str, options: argparse.Namespace) -> tuple[str, str]:
    outcome = allow_io_uring(parse(text))
    if options.oci:
        return render(resolve(outcome.profile, _architecture(options), _capabilities(options)), text), outcome.summary
    if options.architecture is not None or options.capability:
        raise ValueError("--architecture and --capability are for --oci")
    return render(outcome.profile, text) if outcome.changed else text, outcome.summary


def _architecture(options: argparse.Namespace) -> str:
    machine = platform.machine()
    architecture: str = options.architecture or _MACHINES.get(machine, machine)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"say with --architecture what the container runs on; this machine is {machine}")
    return architecture


def _capabilities(options: argparse.Namespace) -> frozenset[str]:
    for name in options.capability:
        if not name.startswith("CAP_") or not name.isupper():
            raise ValueError(f"{name!r} is not a capability: they are called CAP_SYS_CHROOT and the like")
    return frozenset(options.capability)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the whole new text, or what was there before.

    Raises:
      OSError: the file cannot be written; the old file is still there.
      ValueError: something else than a regular file has this name.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        _replace(path.resolve(), text)  # follows a symbolic link
    except OSError as error:  # it names the temporary file, which means nothing to the user
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a file that could not be made cannot be removed either
            beside.unlink()
        raise
