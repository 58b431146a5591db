"""The checks of the options of servers: each raises a ValueError or TypeError that says what would do."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import attrs

from gain_trio._transports import (
    Marks,
    UnixAddress,
    check_handshake_timeout,
    check_server_context,
    checked_seconds,
    parse_address,
)

from ._balancer import BALANCERS
from ._checks import check_timeout
from ._proxy import check_proxy_timeout, parse_networks
from ._server_lifespan import check_lifespan

Check: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]

NICE: Final = range(-20, 20)
"""What setpriority(2) takes."""


def one_of(kind: Any, *, or_none: bool = False) -> Check:
    """One of the values of a Literal.  The validator of attrs would put all of the attribute into the message."""
    names = get_args(kind)

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in names and not (or_none and value is None):
            words = f"{', '.join(map(repr, names))}{', or None' * or_none}"
            raise ValueError(f"{attribute.name} is one of {words}, not {value!r}")

    return check


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


UNIX_SCHEME: Final = "unix://"

MOST_WORKERS: Final = 4096
"""Of consumers, and of processes: more than machines have CPUs, so a larger number is a slip, and would take all memory."""


def at_least(least: int, most: int | None = None) -> Check:
    """A whole number that is not less, and not more."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not is_count(value):
            raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{attribute.name} must be at least {least}, not {value}")
        if most is not None and value > most:
            raise ValueError(f"{attribute.name} must be at most {most}, not {value}")

    return check


def at_least_1_or_none(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not is_count(value):
        raise TypeError(f"{attribute.name} must be a whole number or None, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, or None, not {value}")


def check_flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} is True or False, not {value!r}")


def check_processes(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"processes is a number, 'auto' for one a CPU, or None for this process alone, not {value!r}")
    if value != "auto":
        at_least_1_or_none(instance, attribute, value)
        if value is not None and value > MOST_WORKERS:
            raise ValueError(f"processes must be at most {MOST_WORKERS}, or 'auto' for one a CPU, not {value}")


def check_balancer(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, str):
        if value not in BALANCERS:
            names = ", ".join(map(repr, BALANCERS))
            raise ValueError(f"balancer is one of {names}, or an object with a method pick, not {value!r}")
    elif isinstance(value, type) or not callable(getattr(value, "pick", None)):
        raise TypeError(f"balancer is a name, or an object with a method pick(peer, consumers), not {value!r}")


def check_priority(_instance: object, _attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not is_count(value):
        raise TypeError(f"priority must be a whole number or None, not {value!r}")
    if value not in NICE:
        raise ValueError(f"priority is a nice value of {NICE[0]} (first) to {NICE[-1]} (last), not {value}")


def check_marks(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, Marks):
        raise TypeError(f"marks must be gain_trio.Marks(...) or None, not {value!r}")


def check_context(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, ssl.SSLContext) or (value is not None and not callable(value)):
        check_server_context(value)


def lifespan_or_none(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_lifespan(value)


def check_graceful_timeout(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    check_timeout(attribute.name, value)


def valid_handshake_timeout(_instance: object, _attribute: attrs.Attribute[Any], value: float) -> None:
    check_handshake_timeout(value)


def valid_proxy_timeout(_instance: object, _attribute: attrs.Attribute[Any], value: float) -> None:
    check_proxy_timeout(value)


def check_metrics(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"metrics is an address such as 'tcp://127.0.0.1:9100', or None, not {value!r}")
    try:
        parse_address(value, schemes=("tcp", "unix", "fd"))
    except ValueError as error:
        raise ValueError(f"metrics is an address: {error}") from None


def path_or_none(value: Any) -> Any:
    """A path object as a string; :func:`check_control` refuses other objects."""
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else value


def path_alone(value: str) -> str:
    """Refuse an address, which other options take, in place of its path.

    Raises:
      ValueError: it is one; says what to write.
    """
    if value.startswith(UNIX_SCHEME):
        raise ValueError(f"write the path alone, {value.removeprefix(UNIX_SCHEME) or '/run/app/control.sock'!r}")
    return value


def check_control(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(
            f"control is the path of a Unix socket, such as '/run/app/control.sock', or None, not {value!r}"
        )
    try:
        path_alone(value)
        if value and not value.startswith("/"):  # the message for addresses says to write unix://
            raise ValueError("it does not begin at the root: write all of it, '/run/app/control.sock' for example")  # noqa: TRY301 - one place puts the option before it
        UnixAddress(value)
    except ValueError as error:
        raise ValueError(f"control={value!r} is no path for a Unix socket: {error}") from error


def senders(value: Iterable[str] | bool) -> tuple[str, ...] | bool:
    """Checked, and no iterator that is empty when it is looked at again."""
    if value is True or value is False:
        return value
    return tuple(map(str, parse_networks(value)))


def seconds_or_none(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """More than 0 seconds, or None."""
    if value is not None:
        checked_seconds(attribute.name, value, positive=True)


def check_user(_instance: object, _attribute: object, value: Any) -> None:
    """A number or a name, perhaps with a group behind it."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return
    if not isinstance(value, str):
        raise TypeError(f"user is a number, a name such as 'www-data' or 'www-data:www-data', or None, not {value!r}")
    name, colon, group = value.partition(":")
    if not name or (colon and not group):
        raise ValueError(f"user is a number, a name such as 'www-data' or 'www-data:www-data', or None, not {value!r}")


# --- the arguments of the command ---


def parse_octal(text: str) -> int:
    """Permissions, as chmod(1) takes them."""
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"{text!r} is no permissions in octal, such as 660") from None


def parse_id(text: str) -> int | str:
    """The number or the name of a user or group."""
    return int(text) if text.isdecimal() else text


def parse_size(text: str) -> int:
    """Bytes; with K, M or G behind the number, times 1024 once, twice or three times."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in {"K", "M", "G"} else (text, "")
    if not number.isdecimal():
        raise ValueError(f"{text!r} is no number of bytes, such as 512M")
    return int(number) << 10 * " KMG".index(unit or " ")


def parse_path(text: str) -> str:
    """A path from the root; a relative one is below the current folder."""
    if not text:
        raise ValueError("a path is wanted, and this is an empty one")
    return str(Path(path_alone(text)).absolute())


def parse_senders(text: str) -> tuple[str, ...]:
    """The networks in an argument, with commas between them."""
    return tuple(part.strip() for part in text.split(","))
