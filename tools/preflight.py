"""Check that this machine can build gain_trio, and print what is missing and the command that installs it.

    python3 tools/preflight.py

The Makefile runs it before any set-up, so it needs only Python, and its syntax lets an old Python still run it and report
that it is too old.
"""

import os
import shlex
import subprocess
import sys
import sysconfig

OLDEST = (3, 10)


def python_is_old() -> "tuple[str, str] | None":
    if sys.version_info[:2] >= OLDEST:
        return None
    return (
        "Python {}.{} or newer is needed, and {} is {}.{}".format(*OLDEST, sys.executable, *sys.version_info[:2]),
        "install one and name it: make PYTHON=python3.12 ...",
    )


def venv_is_missing() -> "tuple[str, str] | None":
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        return "Python's venv is missing ({})".format(error), "apt install {}".format(package("venv"))
    return None


def compiler() -> "list[str]":
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compiler_is_missing() -> "tuple[str, str] | None":
    try:
        subprocess.run([*compiler(), "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "there is no C compiler ({})".format(compiler()[0]), "apt install gcc libc6-dev, or set CC"
    return None


def can_include(header: str, *flags: str) -> bool:
    source = "#include <{}>\n".format(header).encode()
    command = [*compiler(), *flags, "-E", "-x", "c", "-"]
    result = subprocess.run(command, input=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return result.returncode == 0


def headers_are_missing() -> "tuple[str, str] | None":
    if not can_include("stdint.h"):
        return "the C library's headers are missing", "apt install libc6-dev"
    if not can_include("linux/io_uring.h"):
        return "the kernel's headers are missing (linux/io_uring.h)", "apt install linux-libc-dev"
    paths = sysconfig.get_paths()
    if not can_include("Python.h", "-I" + paths["include"], "-I" + paths["platinclude"]):
        return "Python's headers are missing ({}/Python.h)".format(paths["include"]), "apt install " + package("dev")
    return None


def package(part: str) -> str:
    """The Debian package with a part of this interpreter; the distribution's own Python has a name without a number."""
    return "python3-{0} (or python{1}.{2}-{0} for a Python beside the system's)".format(part, *sys.version_info[:2])


def main() -> int:
    checks = [python_is_old, venv_is_missing]
    if sys.platform == "linux" and sys.implementation.name == "cpython":  # elsewhere nothing is compiled
        checks += [compiler_is_missing, headers_are_missing]
    for check in checks:
        found = check()
        if found is not None:
            sys.stderr.write("cannot set up gain_trio: {}\n  cure: {}\n".format(*found))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
