"""WebSocket frames without I/O: what is read, what is refused and how, however the bytes are cut."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from support.fuzz import examples, given, st
from support.websocket_frames import (
    BINARY,
    CLOSE,
    CONT,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    closing,
    frame,
    frames,
    handshake,
)
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.protocol import State
from websockets.uri import parse_uri

from gain_trio.asgi import AsgiConfig
from gain_trio.asgi import _websocket_codec as codec_module
from gain_trio.asgi._websocket_codec import MAX_CONTROL, MAX_FRAMES, PIECE, End, WebSocketCodec

pytestmark = pytest.mark.no_run

GREEN = "grün 🟢".encode()
HALF = GREEN[:3]
"""Ends in the middle of a character."""


def opened(*fields: tuple[bytes, bytes], **options: Any) -> WebSocketCodec:
    codec = WebSocketCodec(AsgiConfig(**options))
    assert codec.handshake(handshake(*fields)).status == 101
    return codec


def take(codec: WebSocketCodec, pieces: Iterable[bytes]) -> list[str | bytes]:
    """Feed the pieces one after another, and return the messages."""
    found = []
    for piece in pieces:
        codec.feed(piece)
        while (message := codec.next_message()) is not None:
            assert message["type"] == "websocket.receive"
            assert len(message) == 2
            found.append(message["text"] if "text" in message else message["bytes"])
    return found


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """Whole, byte by byte, and in two and three pieces."""
    yield [data]
    yield [data[index : index + 1] for index in range(len(data))]
    yield from ([data[:index], data[index:]] for index in range(1, min(len(data), 80)))
    chosen = random.Random(len(data))
    for _ in range(20):
        first, second = sorted(chosen.choices(range(len(data) + 1), k=2))
        yield [data[:first], data[first:second], data[second:]]


LONG = b"x" * 126
VERY_LONG = b"y" * 65536

GOOD = {
    "empty text": (frame(TEXT), [""], []),
    "text": (frame(TEXT, GREEN), [GREEN.decode()], []),
    "bytes": (frame(BINARY, b"\x00\xff"), [b"\x00\xff"], []),
    "the longest short length": (frame(TEXT, b"x" * 125), ["x" * 125], []),
    "the shortest length of two bytes": (frame(BINARY, LONG), [LONG], []),
    "the longest length of two bytes": (frame(BINARY, b"z" * 65535), [b"z" * 65535], []),
    "a length of eight bytes": (frame(BINARY, VERY_LONG), [VERY_LONG], []),
    "a mask of zeros": (frame(TEXT, b"clear", mask=bytes(4)), ["clear"], []),
    "several": (frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT, b"c"), ["a", b"b", "c"], []),
    "two fragments": (frame(TEXT, b"a", fin=False) + frame(CONT, b"b"), ["ab"], []),
    "fragments of bytes": (
        frame(BINARY, b"\xff", fin=False) + frame(CONT, LONG, fin=False) + frame(CONT, b"b"),
        [b"\xff" + LONG + b"b"],
        [],
    ),
    "empty fragments": (frame(TEXT, fin=False) + frame(CONT, fin=False) * 3 + frame(CONT), [""], []),
    "a character over fragments": (
        b"".join(frame(TEXT if not index else CONT, GREEN[index : index + 1], fin=False) for index in range(len(GREEN)))
        + frame(CONT),
        [GREEN.decode()],
        [],
    ),
    "a ping": (frame(PING, b"hello"), [], [(PONG, b"hello")]),
    "an empty ping": (frame(PING), [], [(PONG, b"")]),
    "the longest ping": (frame(PING, b"p" * 125), [], [(PONG, b"p" * 125)]),
    "ten pings": (
        b"".join(frame(PING, bytes((number,))) for number in range(10)),
        [],
        [(PONG, bytes((number,))) for number in range(10)],
    ),
    "a pong that was not asked for": (frame(PONG, b"?") + frame(TEXT, b"a"), ["a"], []),
    "pings between fragments": (
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"1")
        + frame(CONT, b"b", fin=False)
        + frame(PONG)
        + frame(PING, b"2")
        + frame(CONT, b"c"),
        ["abc"],
        [(PONG, b"1"), (PONG, b"2")],
    ),
    "a message after fragments": (
        frame(TEXT, b"a", fin=False) + frame(CONT, b"b") + frame(TEXT, b"c") + frame(BINARY, b"d"),
        ["ab", "c", b"d"],
        [],
    ),
}

CLOSED = {
    "without a code": (closing(), End(1005), b""),
    "normally": (closing(1000), End(1000), struct.pack("!H", 1000)),
    "with a reason": (closing(1001, GREEN), End(1001, GREEN.decode()), struct.pack("!H", 1001) + GREEN),
    "with the longest reason": (closing(1000, b"r" * 123), End(1000, "r" * 123), struct.pack("!H", 1000) + b"r" * 123),
    **{
        str(code): (closing(code), End(code), struct.pack("!H", code))
        for code in (1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
    },
}

BROKEN = {
    # reserved bits and opcodes
    **{f"reserved bits {rsv}": (frame(TEXT, b"a", rsv=rsv), 1002) for rsv in range(1, 8)},
    **{f"reserved bits {rsv} of a ping": (frame(PING, rsv=rsv), 1002) for rsv in range(1, 8)},
    **{f"opcode {opcode}": (frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    # masks
    "text without a mask": (frame(TEXT, b"a", mask=None), 1002),
    "a long message without a mask": (frame(BINARY, LONG, mask=None), 1002),
    "a ping without a mask": (frame(PING, mask=None), 1002),
    "a close without a mask": (closing(1000, mask=None), 1002),
    # control frames
    "a ping in fragments": (frame(PING, b"a", fin=False), 1002),
    "a ping that is too long": (frame(PING, b"p" * 126), 1002),
    "a pong that is too long": (frame(PONG, b"p" * 126), 1002),
    "a close in fragments": (frame(CLOSE, struct.pack("!H", 1000), fin=False), 1002),
    "a close that is too long": (closing(1000, b"r" * 124), 1002),
    "half a code": (frame(CLOSE, b"\x03"), 1002),
    "a reason that is not UTF-8": (closing(1000, HALF), 1007),
    **{
        f"close code {code}": (closing(code), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    # fragments
    "a continuation of nothing": (frame(CONT, b"a"), 1002),
    "a continuation of nothing, with more": (frame(CONT, b"a", fin=False), 1002),
    "a text within a text": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "bytes within a text": (frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), 1002),
    "a close within a message": (frame(TEXT, b"a", fin=False) + closing(1000), 1002),
    # UTF-8
    "half a character": (frame(TEXT, HALF), 1007),
    "a byte that no character begins with": (frame(TEXT, b"a\xff"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "more bytes than needed": (frame(TEXT, b"\xc0\xaf"), 1007),
    "above Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "half a character in the last fragment": (frame(TEXT, b"a", fin=False) + frame(CONT, HALF), 1007),
    "a bad byte in the first of many": (frame(TEXT, b"\xff", fin=False), 1007),
    "a character that is not finished": (frame(TEXT, HALF, fin=False) + frame(CONT, b"a", fin=False), 1007),
    # sizes: the limit is 70,000
    "too large": (frame(BINARY, bytes(70_001)), 1009),
    "a head that says so": (frame(BINARY, length=70_001), 1009),
    "a head that says much more": (frame(TEXT, length=2**62), 1009),
    "too large a length": (frame(TEXT, length=2**63), 1009),
    "fragments that are too large": (frame(BINARY, bytes(40_000), fin=False) + frame(CONT, bytes(30_001)), 1009),
    "a ping with a length of eight bytes": (frame(PING, length=70_000), None),
}


@pytest.mark.parametrize("name", GOOD)
def test_messages_are_read_however_they_are_cut(name: str) -> None:
    data, messages, answers = GOOD[name]
    for pieces in cuts(data) if len(data) < 1000 else ([data], [data[:9], data[9:500], data[500:]]):
        codec = opened()
        assert take(codec, pieces) == messages
        assert frames(codec.control) == answers
        assert codec.is_open
        assert codec.end is None
        assert codec.unread == 0


@pytest.mark.parametrize("name", CLOSED)
def test_a_close_frame_is_answered_with_its_code(name: str) -> None:
    data, end, answer = CLOSED[name]
    for pieces in cuts(frame(TEXT, b"last") + data + frame(TEXT, b"after")):
        codec = opened()
        assert take(codec, pieces) == ["last"]
        assert not codec.is_open
        assert not codec.has_failed
        assert codec.end == end
        assert frames(codec.control) == [(CLOSE, answer)]


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_closes_with_its_code(name: str) -> None:
    data, code = BROKEN[name]
    if code is None:
        data, code = data + bytes(70_000), 1002
    for pieces in cuts(frame(TEXT, b"good") + data + frame(TEXT, b"after")) if len(data) < 1000 else ([data],):
        codec = opened(ws_max_size=70_000)
        assert take(codec, pieces) == (["good"] if len(data) < 1000 else [])
        assert not codec.is_open
        assert codec.has_failed
        assert codec.end is not None
        assert codec.end.code == code
        [(opcode, payload)] = frames(codec.control)
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", code))
        codec.feed(frame(TEXT, b"more"))
        assert codec.next_message() is None


def test_a_continuation_after_the_last_breaks_a_rule() -> None:
    codec = opened()
    assert take(codec, [frame(TEXT, b"a", fin=False) + frame(CONT, b"b") + frame(CONT, b"c")]) == ["ab"]
    assert codec.end is not None
    assert codec.end.code == 1002


def test_the_largest_message_is_not_too_large() -> None:
    codec = opened(ws_max_size=70_000)
    whole = bytes(70_000)
    data = frame(BINARY, whole) + frame(BINARY, whole[:40_000], fin=False) + frame(CONT, whole[:30_000])
    assert take(codec, [data]) == [whole, whole]
    assert codec.is_open


def test_a_message_is_read_only_when_it_is_asked_for() -> None:
    codec = opened()
    codec.feed(frame(TEXT, b"first") + frame(PING, b"p") + frame(TEXT, b"second") + closing(1000))
    assert codec.next_message() == {"type": "websocket.receive", "text": "first"}
    assert codec.control == b""
    assert codec.unread > 0
    assert codec.next_message() == {"type": "websocket.receive", "text": "second"}
    assert frames(codec.control) == [(PONG, b"p")]
    assert codec.is_open
    assert codec.next_message() is None
    assert codec.end == End(1000)


def test_a_piece_that_was_read_is_let_go() -> None:
    codec = opened()
    codec.feed(frame(BINARY, bytes(100_000)))
    assert codec.next_message() is not None
    assert codec.next_message() is None
    assert codec._data == b""
    codec.feed(frame(TEXT, b"a") + b"\x81")
    assert codec.next_message() is not None
    assert codec.next_message() is None
    assert codec.unread == 1


def test_pongs_that_nothing_sends_are_bounded() -> None:
    codec = opened()
    for number in range(10_000):
        codec.feed(frame(PING, b"%4d" % number + b"." * 100))
        assert codec.next_message() is None
        assert len(codec.control) <= MAX_CONTROL
    assert frames(codec.control)[-1] == (PONG, b"9999" + b"." * 100)


def test_fragments_of_a_byte_take_no_more_than_the_message() -> None:
    codec = opened(ws_max_size=4096)
    codec.feed(frame(BINARY, fin=False))
    for _ in range(4096):
        codec.feed(frame(CONT, b"a", fin=False) + frame(CONT, fin=False))
        assert codec.next_message() is None
    codec.feed(frame(CONT))
    assert codec.next_message() == {"type": "websocket.receive", "bytes": b"a" * 4096}


# --- sending ---


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
@pytest.mark.parametrize("kind", [codec_module.TEXT, codec_module.BINARY])
def test_a_message_is_one_frame(size: int, kind: int) -> None:
    made = opened().message(kind, b"m" * size)
    whole = made if isinstance(made, bytes) else b"".join(made)
    assert frames(whole) == [(kind & 0x0F, b"m" * size)]


def test_a_ping() -> None:
    codec = opened()
    codec.ping(b"1234")
    assert frames(codec.control) == [(PING, b"1234")]


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, ""), (1006, ""), (1015, ""), (999, ""), (2000, ""), (5000, ""), (1000, "é" * 62)]
)
def test_a_close_that_is_not_to_be_sent(code: int, reason: str) -> None:
    codec = opened()
    with pytest.raises(ValueError, match="cannot close"):
        codec.close(code, reason)
    assert codec.is_open
    assert codec.control == b""


@pytest.mark.parametrize("answer", [closing(1000), closing(), closing(1002), frame(TEXT, b"x", mask=None)])
def test_a_close_is_answered_after_what_was_under_way(answer: bytes) -> None:
    codec = opened()
    codec.feed(frame(TEXT, b"unread") + frame(BINARY, b"half")[:-2])
    codec.close(1001, "enough")
    assert frames(codec.control) == [(CLOSE, struct.pack("!H", 1001) + b"enough")]
    assert codec.next_message() is None
    assert not codec.is_answered()
    rest = frame(BINARY, b"half")[-2:] + frame(PING, b"still there?") + answer
    for index in range(len(rest) - 1):
        if codec.is_answered(rest[index : index + 1]):
            assert answer[0] == 0x81  # the rule is broken by its second byte
            return
    assert codec.is_answered(rest[-1:])


# --- how much one call does ---


@pytest.mark.parametrize("least", [frame(PING), frame(CONT, fin=False), frame(PONG)])
def test_a_call_reads_a_bounded_number_of_frames(least: bytes) -> None:
    codec = opened()
    codec.feed(frame(TEXT, b"a", fin=False) + least * (10 * MAX_FRAMES) + frame(CONT, b"b"))
    calls = 0
    message = None
    while message is None:
        before = codec.unread
        message = codec.next_message()
        calls += 1
        assert codec.has_more is (message is None)
        assert before - codec.unread <= MAX_FRAMES * (len(least) + 1)
        assert len(codec.control) <= MAX_CONTROL
    assert message["text"] == "ab"
    assert calls == 11
    assert codec.next_message() is None
    assert not codec.has_more


def test_the_last_frame_may_be_the_last_of_a_call() -> None:
    codec = opened()
    codec.feed(frame(PONG) * MAX_FRAMES)
    assert codec.next_message() is None
    assert (codec.has_more, codec.unread) == (False, 0)


def test_a_look_for_the_close_frame_reads_a_bounded_number_of_bytes() -> None:
    codec = opened()
    codec.feed(frame(PING) * PIECE)
    codec.close(1000, "")
    answered = codec.is_answered(closing(1000))
    while not answered:
        before = codec.unread
        assert before
        answered = codec.is_answered()
        assert 0 < before - codec.unread <= PIECE
    assert codec.unread == 0


# --- the handshake ---


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (handshake(), 101),
        (handshake((b"sec-websocket-protocol", b"chat")), 101),
        (handshake((b"sec-websocket-extensions", b"x-unknown")), 101),
        (handshake(drop=[b"sec-websocket-key"]), 400),
        (handshake((b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")), 400),
        ([*handshake(drop=[b"sec-websocket-key"]), (b"sec-websocket-key", b"short")], 400),
        (handshake(drop=[b"sec-websocket-version"]), 400),
        (handshake(drop=[b"upgrade"]), 426),
        (handshake(drop=[b"connection"]), 426),
        (handshake((b"upgrade", b"h2c")), 101),
        ([*handshake(drop=[b"upgrade"]), (b"upgrade", b"h2c, WebSocket")], 101),
        ([*handshake(drop=[b"upgrade"]), (b"upgrade", b"h2c, websocket2")], 426),
        (handshake((b"sec-websocket-extensions", b"permessage-deflate; =")), 400),
    ],
)
def test_the_handshake_is_checked(fields: list[tuple[bytes, bytes]], status: int) -> None:
    answer = WebSocketCodec(AsgiConfig()).handshake(fields)
    assert answer.status == status
    said = dict(answer.fields)
    if status == 101:
        assert said[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert answer.body == b""
    else:
        assert said[b"sec-websocket-version"] == b"13"
        assert answer.body


def test_another_version_is_told_the_right_one() -> None:
    fields = [*handshake(drop=[b"sec-websocket-version"]), (b"sec-websocket-version", b"8")]
    answer = WebSocketCodec(AsgiConfig()).handshake(fields)
    assert (answer.status, dict(answer.fields)[b"sec-websocket-version"]) == (400, b"13")


# --- compression ---


def deflated(payload: bytes, **options: int) -> bytes:
    encoder = zlib.compressobj(wbits=-12, **options)
    data = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\x00\x00\xff\xff")


def compressing(**options: Any) -> WebSocketCodec:
    codec = opened(DEFLATE, **options)
    assert codec.compresses
    return codec


def test_compression_is_an_option() -> None:
    assert not opened(DEFLATE, ws_per_message_deflate=False).compresses
    assert not opened().compresses


def test_compressed_messages_are_read() -> None:
    codec = compressing()
    data = frame(TEXT, deflated(GREEN), rsv=4) + frame(TEXT, b"plain") + frame(PING, b"p")
    assert take(codec, [data]) == [GREEN.decode(), "plain"]
    assert frames(codec.control) == [(PONG, b"p")]


def test_compressed_fragments_are_read_with_pings_between() -> None:
    data = deflated(b"abc" * 1000)
    pieces = frame(TEXT, data[:3], fin=False, rsv=4) + frame(PING, b"p") + frame(CONT, data[3:])
    for cut in cuts(pieces):
        codec = compressing()
        assert take(codec, cut) == ["abc" * 1000]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, deflated(bytes(70_001)), rsv=4), 1009),
        (frame(BINARY, deflated(bytes(5_000_000), level=1), rsv=4), 1009),
        (frame(BINARY, deflated(bytes(60_000)), rsv=4, fin=False) + frame(CONT, bytes(10_001)), None),
        (frame(TEXT, b"\xff\xff\xff\xff", rsv=4), 1002),
        (frame(TEXT, deflated(b"\xff"), rsv=4), 1007),
        (frame(PING, b"p", rsv=4), 1002),
        (frame(TEXT, deflated(b"a"), rsv=6), 1002),
        (frame(TEXT, b"a", fin=False, rsv=4) + frame(CONT, b"b", rsv=4), 1002),
        (frame(TEXT, b"a", fin=False) + frame(CONT, b"b", rsv=4), 1002),
    ],
)
def test_what_is_wrong_with_compressed_messages(data: bytes, code: int | None) -> None:
    codec = compressing(ws_max_size=70_000)
    assert take(codec, [data]) == []
    assert codec.end is not None
    assert codec.end.code in ((1002, 1009) if code is None else (code,))


def test_many_small_bombs_are_expanded_one_at_a_time() -> None:
    """64 KiB that would become 60 MiB."""
    bomb = frame(BINARY, deflated(bytes(1_000_000)), rsv=4)
    codec = opened((b"sec-websocket-extensions", b"permessage-deflate; client_no_context_takeover"))
    codec.feed(bomb * 60)
    for left in range(59, -1, -1):
        message = codec.next_message()
        assert message is not None
        assert len(message["bytes"]) == 1_000_000
        assert codec.unread == left * len(bomb)


# --- beside another reader ---


def client(*, deflate: bool) -> ClientProtocol:
    """A client whose handshake is over."""
    extensions = [ClientPerMessageDeflateFactory()] if deflate else None
    protocol = ClientProtocol(parse_uri("ws://here/"), extensions=extensions, state=State.OPEN)
    if deflate:
        codec = WebSocketCodec(AsgiConfig())
        answer = dict(codec.handshake(handshake(DEFLATE)).fields)[b"sec-websocket-extensions"]
        [extension] = answer.decode().split(",")
        parameters = [
            (name, value or None)
            for name, _, value in (part.strip().partition("=") for part in extension.split(";")[1:])
        ]
        protocol.extensions = [ClientPerMessageDeflateFactory().process_response_params(parameters, [])]
    return protocol


@examples(100)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=300),
            st.binary(max_size=300),
            st.lists(st.text(max_size=20), min_size=2, max_size=4),
            st.just(None),
        ),
        max_size=8,
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_a_client_sends_arrives_and_comes_back(
    sent: list[str | bytes | list[str] | None], deflate: bool, chosen: random.Random
) -> None:
    peer, codec = client(deflate=deflate), opened(*([DEFLATE] if deflate else []))
    expected: list[str | bytes] = []
    for message in sent:
        if message is None:
            peer.send_ping(b"ping")
        elif isinstance(message, list):
            peer.send_text(message[0].encode(), fin=False)
            for part in message[1:-1]:
                peer.send_continuation(part.encode(), fin=False)
            peer.send_continuation(message[-1].encode(), fin=True)
            expected.append("".join(message))
        elif isinstance(message, str):
            peer.send_text(message.encode())
            expected.append(message)
        else:
            peer.send_binary(message)
            expected.append(message)
    data = b"".join(peer.data_to_send())
    pieces = []
    while data:
        size = chosen.randint(1, 200)
        pieces.append(data[:size])
        data = data[size:]
    assert take(codec, pieces) == expected
    peer.receive_data(codec.control)
    assert len(peer.events_received()) == sent.count(None)
    for message in expected:
        is_text = isinstance(message, str)
        made = codec.message(
            codec_module.TEXT if is_text else codec_module.BINARY,
            message.encode() if isinstance(message, str) else message,
        )
        peer.receive_data(made if isinstance(made, bytes) else b"".join(made))
        [event] = peer.events_received()
        assert isinstance(event, Frame)
        assert (bytes(event.data).decode() if is_text else bytes(event.data)) == message
    assert codec.is_open


@examples(300)
@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_bytes_end_in_messages_or_in_an_end(pieces: list[bytes], deflate: bool) -> None:
    codec = opened(*([DEFLATE] if deflate else []), ws_max_size=1000)
    whole = opened(*([DEFLATE] if deflate else []), ws_max_size=1000)
    assert take(codec, pieces) == take(whole, [b"".join(pieces)])
    assert (codec.end, codec.control) == (whole.end, whole.control)
    assert codec.is_open == (codec.end is None)
