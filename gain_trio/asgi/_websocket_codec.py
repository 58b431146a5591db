"""WebSocket as bytes in and messages out, without any I/O (RFC 6455, RFC 7692).

The protocol of the package websockets checks the handshake, reads frames, answers control frames and compresses.  This
module stands in front of it, for two reasons:

*One message at a time.*  The protocol reads every frame of the data that it is given.  64 KiB of data may be ten thousand
messages, or become 64 MiB when decompressed, and all of them would be queued before the app has asked for the first.  So
this module finds where a frame ends, which takes its first two to ten bytes, and gives the protocol a frame only when the
caller asks for the next message.

*The usual frame is short work.*  A whole message of text or bytes, in one frame that is not compressed and has arrived
whole, needs four steps: its length, its mask, unmasking (in C), decoding.  This module does them itself in a sixth of the
time.  The protocol gets every other frame: control frames, fragments, compressed ones, and all that breaks a rule.  In the
other direction a frame without compression is a head of two to ten bytes in front of the message.
"""

from __future__ import annotations

import codecs
import logging
import struct
from collections.abc import Iterable
from typing import Final, final

import attrs
from websockets.datastructures import Headers
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from gain_trio._http import tokens

from ._asgi_config import AsgiConfig
from ._asgi_types import Message

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of websockets without its C module
    from websockets.utils import apply_mask

TEXT: Final = 0x81
"""The first byte of a frame that is a whole text message, uncompressed."""
BINARY: Final = 0x82
"""The same for bytes."""
MASKED: Final = 0x80
"""The bit that a client sets in a frame's second byte."""
MAX_CONTROL: Final = 16 * 1024
"""Bytes of control frames that wait for a sender.  When there are more, a pong answers the last ping only (5.5.3)."""
MAX_JOINED: Final = 16 * 1024
"""Bytes of a message that is copied behind its head; a longer one is sent beside it, uncopied."""
PIECE: Final = 4096
"""Bytes that one look for a close frame reads: some milliseconds, because a frame may have six bytes."""
MAX_FRAMES: Final = 256
"""Frames without a message that one call reads: some milliseconds."""

_WHOLE: Final = frozenset((TEXT, BINARY))
_HEADS: Final = {kind: [bytes((kind, length)) for length in range(126)] for kind in (TEXT, BINARY)}

# The protocol logs the begin and the end of each connection at level info.  The server has lines of its own for that.
_logger: Final = logging.getLogger("gain_trio.websockets")
_logger.setLevel(logging.WARNING)


@final
@attrs.frozen
class End:
    """Why a WebSocket is over: what ``websocket.disconnect`` says."""

    code: int
    reason: str = ""


@final
@attrs.frozen
class Handshake:
    """The answer to a handshake."""

    status: int
    """101, or why it is refused."""
    fields: list[tuple[bytes, bytes]]
    body: bytes


@final
class WebSocketCodec:
    """One connection's frames."""

    __slots__ = (
        "_data",
        "_decoder",
        "_left",
        "_max_size",
        "_parts",
        "_position",
        "_protocol",
        "compresses",
        "control",
        "end",
        "has_failed",
        "has_more",
        "is_open",
    )

    def __init__(self, config: AsgiConfig) -> None:
        # A window of 4 KiB compresses short messages as well as one of 32 KiB, with a fifth of the memory.
        deflate = ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        self._protocol = ServerProtocol(
            extensions=[deflate] if config.ws_per_message_deflate else None,
            state=State.OPEN,  # the handshake is the app's to accept, and HTTP's to send
            max_size=config.ws_max_size,
            logger=_logger,
        )
        self._max_size = config.ws_max_size
        self._data = b""
        self._position = 0  # of the first unread byte in it
        self._left = 0  # bytes of a frame that the protocol has begun to read
        self._parts: bytearray | None = None  # of a fragmented message
        self._decoder: codecs.IncrementalDecoder | None = None  # which checks it, if it is text
        self.compresses = False
        """Whether what is sent is compressed: then the order of frames in which they were made must be kept."""
        self.control = b""
        """Control frames to be sent: the caller takes them."""
        self.is_open = True
        """Whether messages can be received and sent: no close frame has come or gone."""
        self.has_more = False
        """Whether the last call of :meth:`next_message` has stopped after :data:`MAX_FRAMES` frames: the caller lets other
        tasks run, and calls again."""
        self.end: End | None = None
        """How the peer, or a failure of it, has ended the connection."""
        self.has_failed = False
        """Whether the peer broke a rule: its answer to the close frame is not waited for."""

    # --- the handshake ---

    def handshake(self, fields: Iterable[tuple[bytes, bytes]]) -> Handshake:
        """Check the fields of a GET request that wants an upgrade to WebSocket, and negotiate compression."""
        headers, upgrades = Headers(), []
        for name, value in fields:
            if name == b"upgrade":
                upgrades.append(value)
            else:
                headers[name.decode("latin-1")] = value.decode("latin-1")
        if b"websocket" in tokens(upgrades):
            headers["upgrade"] = (
                "websocket"  # the protocol refuses a list, of which a server may choose (RFC 9110, 7.8)
            )
        response = self._protocol.accept(Request("/", headers))
        self.compresses = bool(self._protocol.extensions)
        answer = [
            (name.encode("latin-1").lower(), value.encode("latin-1"))
            for name, value in response.headers.raw_items()
            if name.lower() not in ("date", "connection", "content-length")
        ]
        if response.status_code == 101:
            return Handshake(101, answer, b"")
        answer.append((b"sec-websocket-version", b"13"))  # RFC 6455, 4.4
        return Handshake(response.status_code, answer, bytes(response.body or b""))

    # --- receiving ---

    @property
    def unread(self) -> int:
        """Bytes that were fed and not read."""
        return len(self._data) - self._position

    def feed(self, data: bytes) -> None:
        """Append data from the peer.  Nothing of it is read before :meth:`next_message`."""
        position = self._position
        self._data = self._data[position:] + data if position < len(self._data) else data
        self._position = 0

    def next_message(self) -> Message | None:  # noqa: C901 - the usual frame is one call: a helper would cost as much as it saves
        """Read frames up to the end of the next message, and return it; None if its end has not arrived.

        None is also returned after :data:`MAX_FRAMES` frames without a message; then :attr:`has_more` is True.
        Frames on the way that are to be answered add to :attr:`control`.  None is also returned when the peer has closed
        the connection or has broken a rule: then :attr:`is_open` is False and :attr:`end` says how.
        """
        data, position = self._data, self._position
        length = len(data)
        left = MAX_FRAMES
        self.has_more = False
        while position < length and self.is_open:
            if not self._left:
                if length - position < 2:
                    break
                kind, second = data[position], data[position + 1]
                size = second & 0x7F
                head = 6
                if size > 125:
                    head = 8 if size == 126 else 14
                    if length - position < head - 4:
                        break
                    size = int.from_bytes(data[position + 2 : position + head - 4], "big")
                begin = position + head
                end = begin + size
                if (
                    kind in _WHOLE
                    and second >= MASKED
                    and end <= length
                    and size <= self._max_size
                    and self._parts is None
                ):
                    self._position = position = end
                    payload = apply_mask(data[begin:end], data[begin - 4 : begin])
                    if kind == BINARY:
                        return {"type": "websocket.receive", "bytes": payload}
                    try:
                        return {"type": "websocket.receive", "text": payload.decode()}
                    except UnicodeDecodeError:
                        self._fail_text()
                        break
                self._left = end - position if second >= MASKED else end - position - 4
            piece = data[position : position + self._left]
            self._left -= len(piece)
            self._position = position = position + len(piece)
            self._protocol.receive_data(piece)
            message = self._read_events()
            if message is not None:
                return message
            left -= 1
            if not left and position < length:
                self.has_more = True
                return None
        if position == length:  # a connection that waits holds no piece that was read
            self._data, self._position = b"", 0
        return None

    def _read_events(self) -> Message | None:
        """Take what the protocol has made of the last piece of a frame."""
        protocol = self._protocol
        message = None
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                message = self._join(event)
        self._take_control()
        if protocol.state is not State.OPEN and self.is_open:
            self._ended_by_peer()
        return message

    def _join(self, frame: Frame) -> Message | None:
        """A whole message, if the frame is its last."""
        if self._parts is None:
            self._parts = bytearray()
            # It finds a text that is not UTF-8 at the first frame that shows it, and not at the end of the message.
            self._decoder = codecs.getincrementaldecoder("utf-8")() if frame.opcode is Opcode.TEXT else None
        self._parts += frame.data
        if self._decoder is not None:
            try:
                self._decoder.decode(bytes(frame.data), frame.fin)
            except UnicodeDecodeError:
                self._fail_text()
                return None
        if not frame.fin:
            return None
        parts, self._parts = self._parts, None
        if self._decoder is None:
            return {"type": "websocket.receive", "bytes": bytes(parts)}
        self._decoder = None
        return {"type": "websocket.receive", "text": parts.decode()}

    def _fail_text(self) -> None:
        self._protocol.fail(CloseCode.INVALID_DATA, "text is UTF-8")
        self._take_control()
        self._ended_by_peer()

    def _ended_by_peer(self) -> None:
        """The protocol has received a close frame and answered it, or has failed the connection."""
        protocol = self._protocol
        self.is_open = False
        sent, received = protocol.close_sent, protocol.close_rcvd
        assert sent is not None
        self.has_failed = received is None or sent.code != received.code
        said = sent if self.has_failed or received is None else received
        self.end = End(int(said.code), said.reason)  # a member of an enumeration shows its name in some texts

    def _take_control(self) -> None:
        frames = [data for data in self._protocol.data_to_send() if data]  # empty: the connection is to be closed
        if frames:
            self.control += b"".join(frames)
            if len(self.control) > MAX_CONTROL:
                self.control = frames[-1]

    # --- sending ---

    def message(self, kind: int, payload: bytes) -> bytes | tuple[bytes, bytes]:
        """The frame of a message, which is :data:`TEXT` in UTF-8, or :data:`BINARY`."""
        if self.compresses:
            protocol = self._protocol
            if kind == TEXT:
                protocol.send_text(payload)
            else:
                protocol.send_binary(payload)
            return b"".join(protocol.data_to_send())
        size = len(payload)
        if size < 126:
            return _HEADS[kind][size] + payload
        head = struct.pack("!BBH", kind, 126, size) if size < 65536 else struct.pack("!BBQ", kind, 127, size)
        return head + payload if size <= MAX_JOINED else (head, payload)

    def ping(self, payload: bytes) -> None:
        """Add a ping to :attr:`control`."""
        self._protocol.send_ping(payload)
        self._take_control()

    # --- closing ---

    def close(self, code: int, reason: str) -> None:
        """Add a close frame to :attr:`control`: nothing is received or sent any more.

        Raises:
          ValueError: the code is not one to be sent (RFC 6455, 7.4), or the reason is longer than 123 bytes of UTF-8.
        """
        try:
            self._protocol.send_close(code, reason)
        except ProtocolError as error:
            raise ValueError(f"this cannot close a WebSocket: code {code!r}, reason {reason!r}: {error}") from error
        self.is_open = False
        self._take_control()

    def is_answered(self, data: bytes = b"") -> bool:
        """Look in ``data``, and in what was fed before, for the peer's close frame, and drop the rest.

        Call it after :meth:`close`.  True means that the peer has answered, or has broken a rule.  A call looks in
        :data:`PIECE` bytes at most; while :attr:`unread` is more than 0 the caller lets other tasks run, and calls again.
        """
        if data:
            self.feed(data)
        position = self._position
        piece = self._data[position : position + PIECE]
        self._position = position + len(piece)
        if not self.unread:
            self._data, self._position = b"", 0
        protocol = self._protocol
        if piece and protocol.close_rcvd is None and protocol.parser_exc is None:
            protocol.receive_data(piece)
            protocol.events_received()
            protocol.data_to_send()
        return protocol.close_rcvd is not None or protocol.parser_exc is not None
