"""AsgiConfig: the options of a server of ASGI apps, beside those of every server."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

import attrs

from gain_trio._kernel import documented_fields
from gain_trio._server import Flag, ServerConfig, ServerOptions, at_least, check_flag, check_timeout, one_of

from ._access_log import AccessForm
from ._lifespan import AppLifespan
from ._proxy_headers import LOOPBACK, ProxyFields, TrustedProxies

if TYPE_CHECKING:
    from typing_extensions import Unpack

_TEXT: Final = re.compile(r"[\x20-\x7e]*")


def _check_websockets(_instance: object, _attribute: attrs.Attribute[Any], value: bool | None) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"websockets is True, False or None, not {value!r}")


def _check_seconds(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not check_timeout(attribute.name, value):
        raise ValueError(f"{attribute.name} must be more than 0 seconds")


def _check_text(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {value!r}")
    if not _TEXT.fullmatch(value):
        raise ValueError(f"{attribute.name} can have printable ASCII characters only: {value!r}")


def _check_root_path(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {value!r}")
    if value and (not value.startswith("/") or value.endswith("/")):
        raise ValueError(f"{attribute.name} begins with a slash and does not end with one: {value!r}")


def _yes_or_no(text: str) -> bool:
    raise ValueError(f"{text!r} is neither yes nor no")


def _yes_no_or_auto(text: str) -> bool:
    raise ValueError(f"{text!r} is none of yes, no and auto")


def _networks(text: str) -> tuple[str, ...] | Literal[True]:
    """The names in an argument, which has commas between them."""
    return _trusted([name.strip() for name in text.split(",")])


def _trusted(value: Iterable[str] | Literal[True]) -> tuple[str, ...] | Literal[True]:
    """Checked, and to be looked at more than once."""
    checked: Any = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
    TrustedProxies(checked)
    return checked  # type: ignore[no-any-return]  # others are refused


def _size(help_text: str, *, default: int, least: int) -> Any:
    flag = Flag(group="web apps", parse=int, metavar="BYTES", help=help_text)
    return attrs.field(default=default, validator=at_least(least), metadata=flag.beside())


def _on_by_default(help_text: str) -> Any:
    return attrs.field(
        default=True,
        validator=check_flag,
        metadata=Flag(
            group="web apps",
            parse=_yes_or_no,
            words={"yes": True, "no": False},
            metavar="yes|no",
            help=help_text,
            usual="yes",
        ).beside(),
    )


def _seconds(help_text: str, *, default: float) -> Any:
    flag = Flag(group="web apps", parse=float, words={"none": math.inf}, metavar="S", help=help_text)
    return attrs.field(default=default, validator=_check_seconds, metadata=flag.beside())


@final
@documented_fields
@attrs.frozen(kw_only=True)
class AsgiConfig:
    """The options of :func:`gain_trio.asgi.serve` that concern apps and HTTP.

    ``attrs.evolve(config, timeout_body=60)`` makes another config of it.

    Raises:
      ValueError, TypeError: an option makes no sense; the message says which one, and what would.
    """

    factory: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(group="web apps", help="the name is that of a function that returns the app").beside(),
    )
    """The app is a function without arguments that returns the app; each process calls it once."""
    root_path: str = attrs.field(
        default="",
        validator=_check_root_path,
        metadata=Flag(
            group="web apps",
            parse=str,
            metavar="PATH",
            help="the path below which a proxy serves the app, /api for example; the proxy removes it from requests",
            usual="",
        ).beside(),
    )
    """The path below which a proxy serves the app: ``scope["root_path"]``.  The proxy removes it from the targets of
    requests, and the server puts it in front of ``scope["path"]``, as ASGI wants it."""
    date_header: bool = _on_by_default("whether responses have a field Date")
    """Give each response a field Date, unless the app has given it one."""
    server_header: str = attrs.field(
        default="gain_trio",
        validator=_check_text,
        metadata=Flag(
            group="web apps", parse=str, metavar="TEXT", help="the field Server of responses; '' for none"
        ).beside(),
    )
    """The field Server of each response, unless the app has given it one; ``""`` for none."""
    limit_head: int = _size("the longest head of a request", default=16 * 1024, least=256)
    """Bytes of a request's line and fields, and of its trailers.  The server answers a longer head with 431 or 414."""
    limit_unread: int = _size(
        "what is received of a body that the app has not read, to keep the connection", default=256 * 1024, least=0
    )
    """Bytes of a request's body that the server receives and drops after the response, when the app has not read them.  It
    closes the connection of a longer body."""
    limit_ahead: int = _size(
        "what is received of further requests while the app watches its client", default=64 * 1024, least=1
    )
    """Bytes that the server receives behind a request while its app waits for the client to disconnect.  With more than that
    the app does not notice a disconnect before it sends."""
    timeout_head: float = _seconds("seconds that the head of a request may take", default=30.0)
    """Seconds that a request's head may take from its first byte; and the first byte of a new connection."""
    timeout_body: float = _seconds("seconds that an app waits for the next piece of a body", default=30.0)
    """Seconds that the app waits for the next piece of a body.  Then it receives ``http.disconnect``, and a client that has
    got no response gets a 408."""
    timeout_keep_alive: float = _seconds("seconds that a connection may wait for its next request", default=5.0)
    """Seconds that a connection may wait for its next request; the server may take one more."""
    timeout_send: float = _seconds("seconds that a client may accept nothing of a response that waits", default=60.0)
    """Seconds that ``send`` waits for a client that reads too slowly.  Then the connection is reset."""
    app_lifespan: AppLifespan = attrs.field(
        default="auto",
        validator=one_of(AppLifespan),
        metadata=Flag(
            group="web apps",
            name="lifespan",
            parse=str,
            choices=get_args(AppLifespan),
            help="whether the app is started and ended by ASGI's lifespan events; auto: if it understands them",
        ).beside(),
    )
    """Whether each process that serves sends the app ASGI's lifespan events.  ``"auto"``: to an app that understands them;
    ``"on"``: an app that does not is an error; ``"off"``: never."""
    proxy_headers: ProxyFields | None = attrs.field(
        default=None,
        validator=one_of(ProxyFields, or_none=True),
        metadata=Flag(
            group="web apps",
            parse=str,
            choices=get_args(ProxyFields),
            bare="x-forwarded",
            help="believe what trusted proxies say of the client and its scheme: in X-Forwarded-For and -Proto, or in "
            "Forwarded",
            usual="without a value x-forwarded",
        ).beside(),
    )
    """The fields in which trusted proxies name the client and its scheme: ``"x-forwarded"`` for X-Forwarded-For and
    X-Forwarded-Proto, ``"forwarded"`` for Forwarded (RFC 7239).  None: no field counts.  A proxy that sets one family passes
    the other one on as the client sent it, so only one counts."""
    forwarded_allow_ips: Iterable[str] | Literal[True] = attrs.field(
        default=LOOPBACK,
        converter=_trusted,
        metadata=Flag(
            group="web apps",
            parse=_networks,
            words={"*": True},
            metavar="NETWORKS",
            help="the proxies of --proxy-headers: addresses and networks, with commas between them, and unix for all "
            "peers on Unix sockets; or * for every peer",
            usual=",".join(LOOPBACK),
        ).beside(),
    )
    """The proxies that ``proxy_headers`` trusts: addresses, networks such as ``"10.0.0.0/8"``, and ``"unix"`` for all peers
    on Unix sockets; or True for every peer, where only one proxy can connect."""
    proxy_host: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(
            group="web apps", help="of --proxy-headers: the field Host becomes what the proxy says, too"
        ).beside(),
    )
    """With ``proxy_headers`` the field Host becomes what the proxy says (X-Forwarded-Host, ``host=``).  For proxies that
    always set it: others pass on what the client has sent, and apps make links of it."""
    access_log: AccessForm | None = attrs.field(
        default=None,
        validator=one_of(AccessForm, or_none=True),
        metadata=Flag(
            group="log and statistics",
            parse=str,
            choices=get_args(AccessForm),
            bare="text",
            help="write a line for each request to standard output: in the combined log format, or as a JSON object",
            usual="without a value text",
        ).beside(),
    )
    """A line for each request: ``"text"`` in the combined log format with the duration behind it, or ``"json"``."""
    access_log_descriptor: int | None = attrs.field(default=None, validator=attrs.validators.optional(at_least(0)))
    """The descriptor that each process writes the lines to, several at once, at least every second.  None: the lines go to
    the logger ``gain_trio.access``, and travel to the server's process as all log records do."""
    max_requests: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(at_least(1)),
        metadata=Flag(
            group="web apps",
            parse=int,
            metavar="N",
            help="requests after which a worker process is replaced, without refusing any; a server without worker "
            "processes ends",
            usual="no limit",
        ).beside(),
    )
    """Requests after which a worker process is replaced: its successor serves before it drains.  A server without worker
    processes drains and ends.  None: no limit."""
    max_requests_jitter: int = attrs.field(
        default=0,
        validator=at_least(0),
        metadata=Flag(
            group="web apps",
            parse=int,
            metavar="N",
            help="the most requests beyond --max-requests: a random number, so that processes are not replaced together",
        ).beside(),
    )
    """The most requests that each process serves beyond ``max_requests``: a random number, so that the processes are not
    all replaced together."""
    cancel_on_disconnect: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(group="web apps", help="cancel the app when its client goes before it has the response").beside(),
    )
    """Cancel the app's call when its client goes before it has the response, as if the app ran in a cancel scope.  It
    does not apply to WebSockets."""
    task_per_request: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(group="web apps", help="run each request in a task of its own, which costs more").beside(),
    )
    """Run the app in a task of its own for each request.  It costs more than all the rest; for apps that tell requests
    apart by
    :func:`trio.lowlevel.current_task`.  It does not apply to WebSockets: each has the task of its connection."""

    websockets: bool | None = attrs.field(
        default=None,
        validator=_check_websockets,
        metadata=Flag(
            group="web apps",
            parse=_yes_no_or_auto,
            words={"auto": None, "yes": True, "no": False},
            metavar="auto|yes|no",
            help="whether the server answers the handshakes of WebSockets; auto: if the package websockets is installed",
            usual="auto",
        ).beside(),
    )
    """Serve WebSockets, by the package websockets.  None serves them if that package is installed, and True raises
    :exc:`ModuleNotFoundError` if it is not.  Without WebSockets, the app gets a handshake as an ordinary request."""
    ws_max_size: int = _size("the longest message of a WebSocket", default=16 * 1024 * 1024, least=1)
    """Bytes of a message from the client, after it is put together and decompressed.  A longer one ends the WebSocket with
    close code 1009."""
    ws_max_queue: int = attrs.field(
        default=32,
        validator=at_least(1),
        metadata=Flag(
            group="web apps",
            parse=int,
            metavar="N",
            help="messages of a WebSocket that are read while the app does not receive",
        ).beside(),
    )
    """Messages that the server reads while the app does not receive.  After that many, or 64 KiB of them, it stops reading,
    and TCP slows the client down."""
    ws_ping_interval: float = _seconds("seconds between two pings of a WebSocket", default=20.0)
    """Seconds between two pings to the client; ``math.inf`` for no pings."""
    ws_ping_timeout: float = _seconds(
        "seconds after a ping in which a client that is there sends something", default=20.0
    )
    """Seconds after a ping in which a client that is there sends something, be it the pong.  A client that sends nothing has
    vanished: the app gets close code 1006.  ``math.inf`` waits for ever."""
    ws_close_timeout: float = _seconds("seconds that a client has to answer a close frame", default=10.0)
    """Seconds that the client has to answer a close frame before the server closes the connection."""
    ws_per_message_deflate: bool = _on_by_default(
        "whether messages of WebSockets are compressed if the client offers it"
    )
    """Compress messages in both directions if the client offers it (RFC 7692).  Such a connection needs some 64 KiB more."""


class AsgiOptions(ServerOptions, total=False):
    """The fields of :class:`gain_trio.ServerConfig` and :class:`AsgiConfig`, as keyword arguments of
    :func:`gain_trio.asgi.serve`.
    """

    factory: bool
    root_path: str
    date_header: bool
    server_header: str
    limit_head: int
    limit_unread: int
    limit_ahead: int
    timeout_head: float
    timeout_body: float
    timeout_keep_alive: float
    timeout_send: float
    app_lifespan: AppLifespan
    proxy_headers: ProxyFields | None
    forwarded_allow_ips: Iterable[str] | Literal[True]
    proxy_host: bool
    access_log: AccessForm | None
    access_log_descriptor: int | None
    max_requests: int | None
    max_requests_jitter: int
    cancel_on_disconnect: bool
    task_per_request: bool
    websockets: bool | None
    ws_max_size: int
    ws_max_queue: int
    ws_ping_interval: float
    ws_ping_timeout: float
    ws_close_timeout: float
    ws_per_message_deflate: bool


def parted(
    config: ServerConfig | None, asgi: AsgiConfig | None, **options: Unpack[AsgiOptions]
) -> tuple[AsgiConfig, dict[str, Any]]:
    """The config of apps with its options that are given beside it, and the options that are those of every server.

    Raises:
      TypeError: ``config`` or ``asgi`` is of another type; and what :class:`AsgiConfig` raises.
    """
    if asgi is not None and not isinstance(asgi, AsgiConfig):
        raise TypeError(f"asgi must be a gain_trio.asgi.AsgiConfig, not {asgi!r}")
    if config is not None and not isinstance(config, ServerConfig):
        raise TypeError(f"config must be a gain_trio.ServerConfig, not {config!r}")
    names = attrs.fields_dict(AsgiConfig)
    own: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    others: dict[str, Any] = {name: value for name, value in options.items() if name not in names}
    return AsgiConfig(**own) if asgi is None else attrs.evolve(asgi, **own), others
