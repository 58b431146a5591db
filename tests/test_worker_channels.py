"""Between server and worker processes: the hand-off of descriptors, the control channel, and the log."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
import trio
from support.descriptors import descriptor_limit, is_open, next_descriptor, open_descriptors
from support.pairs import PATIENCE
from support.runs import wait_released
from support.sockets import socket_pair
from support.workers import raises_alone

from gain_trio._server._processes import _control_messages, _hand_off, _log_forwarding, _worker_process
from gain_trio._server._processes._accepted_socket import AcceptedSocket
from gain_trio._server._processes._boot import FRAME, described
from gain_trio._server._processes._control import ControlChannel
from gain_trio._server._processes._control_messages import (
    ConnectionsEnded,
    Drain,
    HandOffReceived,
    LogRecords,
    StopAccepting,
)
from gain_trio._server._processes._worker_process import WorkerProcess
from gain_trio.logs import JsonFormatter

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.connections

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def hand_off() -> Iterator[Pair]:
    own, other = _hand_off.open_pair()
    with own, other:
        yield own, other


# --- descriptors ---


async def test_connections_arrive_with_their_consumers_and_close_on_exec(hand_off: Pair) -> None:
    own, other = hand_off
    assert _hand_off.receive_ready(other) is None
    with socket_pair() as (one, peer):
        await _hand_off.send(own, 2**40, [7, 300], [AcceptedSocket(one), AcceptedSocket(one)])
        arrival = _hand_off.receive_ready(other)
        assert arrival is not None
        assert (arrival.sequence, arrival.consumers) == (2**40, (7, 300))
        assert len(arrival.descriptors) == 2
        for descriptor in arrival.descriptors:
            assert not os.get_inheritable(descriptor)
            os.write(descriptor, b"x")
            os.close(descriptor)
        assert peer.recv(10) == b"xx"


async def test_as_many_as_go_at_once(hand_off: Pair) -> None:
    own, other = hand_off
    count = _hand_off.MOST_AT_ONCE
    with socket_pair() as (one, _peer):
        await _hand_off.send(own, 1, range(count), [AcceptedSocket(one)] * count)
        arrival = _hand_off.receive_ready(other)
    assert arrival is not None
    assert len(arrival.descriptors) == len(arrival.consumers) == count
    for descriptor in arrival.descriptors:
        os.close(descriptor)


async def test_who_is_out_of_descriptors_knows_how_many_are_missing(hand_off: Pair) -> None:
    own, other = hand_off
    with socket_pair() as (one, _peer):
        await _hand_off.send(own, 1, range(8), [AcceptedSocket(one)] * 8)
        with descriptor_limit(next_descriptor() + 3):
            arrival = _hand_off.receive_ready(other)
        assert arrival is not None
        assert len(arrival.consumers) == 8
        assert len(arrival.descriptors) == 3
        for descriptor in arrival.descriptors:
            os.close(descriptor)
        # The others are not there at all, and the stream goes on.
        await _hand_off.send(own, 2, [0], [AcceptedSocket(one)])
        second = _hand_off.receive_ready(other)
        assert second is not None
        assert second.sequence == 2
        for descriptor in second.descriptors:
            os.close(descriptor)


async def test_sending_waits_for_a_worker_that_is_behind(hand_off: Pair) -> None:
    own, other = hand_off
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    sent = 0

    async def send() -> None:
        nonlocal sent
        with socket_pair() as (one, _peer):
            for number in range(50):
                await _hand_off.send(own, number, [0], [AcceptedSocket(one)])
                sent += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 50
        with trio.fail_after(PATIENCE):
            for number in range(50):
                while (arrival := _hand_off.receive_ready(other)) is None:
                    await trio.lowlevel.wait_readable(other)
                assert arrival.sequence == number
                os.close(arrival.descriptors[0])
    assert sent == 50


async def test_sending_to_a_worker_that_is_gone_says_so(hand_off: Pair) -> None:
    own, other = hand_off
    other.close()
    with socket_pair() as (one, _peer), pytest.raises(OSError, match=r"refused|reset|not connected|Broken pipe"):
        await _hand_off.send(own, 1, [0], [AcceptedSocket(one)])


def test_an_accepted_connection_that_nobody_serves_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        served, _address = listener.accept()
        accepted = AcceptedSocket(served)
        descriptor = accepted.fileno()
        assert accepted.direct_remote_address == client.getsockname()
        accepted.reset()
        assert not is_open(descriptor)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(trio.BrokenResourceError):
            accepted.direct_remote_address  # noqa: B018 - asking is what raises


# --- messages ---


async def control_pair() -> tuple[ControlChannel, ControlChannel]:
    own, other = socket.socketpair()
    return ControlChannel(own), ControlChannel(other)


async def test_messages_arrive_whole_and_in_order() -> None:
    own, other = await control_pair()
    messages = [
        Drain(float("inf")),
        StopAccepting(),
        HandOffReceived(3, 4),
        ConnectionsEnded((1, 2, 3)),
        LogRecords(({"msg": "x" * 100_000},), 2),
    ]
    async with trio.open_nursery() as nursery:
        for message in messages:
            await own.send(message) if not isinstance(message, LogRecords) else nursery.start_soon(own.send, message)
        for message in messages:
            assert await other.receive() == message
    await own.send_eof()
    assert await other.receive() is None
    own.close()
    other.close()


async def test_a_cancelled_receiver_loses_nothing_wherever_in_a_message_it_was() -> None:
    own, other = socket.socketpair()
    control = ControlChannel(other)
    content = _control_messages.encode(HandOffReceived(3, 4))
    frame = FRAME.pack(len(content)) + content
    with own:
        for length in (0, 3, FRAME.size, FRAME.size + 5):
            own.sendall(frame[:length])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control.receive)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            own.sendall(frame[length:])
            with trio.fail_after(PATIENCE):
                assert await control.receive() == HandOffReceived(3, 4)
    control.close()


async def test_a_message_that_was_cut_short_is_the_end() -> None:
    own, other = socket.socketpair()
    control = ControlChannel(other)
    own.sendall(FRAME.pack(100) + b"half")
    own.close()
    assert await control.receive() is None
    control.close()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"N.", b"\x80\x05]\x94."])
async def test_what_is_no_message_is_told(content: bytes) -> None:
    own, other = socket.socketpair()
    control = ControlChannel(other)
    with own:
        own.sendall(FRAME.pack(len(content)) + content)
        with pytest.raises(ValueError, match="is not a message"):
            await control.receive()
    control.close()


async def test_messages_have_a_largest_size() -> None:
    own, other = socket.socketpair()
    control = ControlChannel(other)
    with own:
        own.sendall(FRAME.pack(_control_messages.LARGEST + 1))
        with pytest.raises(ValueError, match="a message of"):
            await control.receive()
    control.close()
    with pytest.raises(ValueError, match="a Failed has"):
        _control_messages.encode(_control_messages.Failed("", "x" * _control_messages.LARGEST))


class Owner:
    """The owner of a worker; ``changed()`` raises like a balancer that fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.got_back: list[AcceptedSocket] = []

    def changed(self) -> None:
        if self.error is not None:
            raise self.error

    def asked_to_leave(self, worker: WorkerProcess, /) -> None:
        """No test does."""

    def given_back(self, connections: Sequence[AcceptedSocket], /) -> None:
        self.got_back += connections


class Process:
    """A worker's process, which ends when it is killed."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = trio.Event()

    def kill(self) -> None:
        self.returncode = -9
        self._ended.set()

    terminate = kill

    async def wait(self) -> None:
        await self._ended.wait()


@pytest.fixture
async def worker() -> AsyncIterator[tuple[WorkerProcess, Owner, ControlChannel]]:
    """A worker process that was never started, who owns it, and the other end of its channel."""
    own, other = await control_pair()
    owner = Owner()
    launch: Any = None
    place: Any = None
    process = WorkerProcess(launch, place, (), (0, 1), owner)
    process._control = own
    yield process, owner, other
    own.close()
    other.close()


async def test_an_error_of_the_balancers_is_not_the_workers(
    worker: tuple[WorkerProcess, Owner, ControlChannel],
) -> None:
    process, owner, other = worker
    owner.error = ValueError("the balancer's")
    await other.send(HandOffReceived(1, 0))
    with pytest.raises(ValueError, match="the balancer's"):
        await process._listen()
    assert process.failure is None


async def test_an_error_of_the_balancers_spares_no_process_its_end(
    worker: tuple[WorkerProcess, Owner, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker_process, "WORKER_GRACE", 0.05)
    process, owner, other = worker
    system: Any = Process()
    process._process = system
    owner.error = ValueError("the balancer's")
    await other.send(HandOffReceived(1, 0))
    with socket_pair() as (one, _peer):
        process._pending.post(AcceptedSocket(one), process.consumers[0])
        with raises_alone(ValueError, "the balancer's"):
            await process._see_it_gone()
        assert [connection.fileno() for connection in owner.got_back] == [one.fileno()]
    assert system.returncode == -9
    assert process.state is _worker_process.WorkerState.ENDED
    assert await other.receive() is None, "it was told to end, and this end is closed"


class AtTheEndOfNurseries(trio.abc.Instrument):
    """Calls back when the last task of a nursery has ended, which takes no new ones from then on."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.calls = 0
        self.errors: list[Exception] = []

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None and not task.parent_nursery.child_tasks:
            self.calls += 1
            try:
                self._call()
            except Exception as error:
                self.errors.append(error)


@pytest.mark.parametrize("ready", [False, True], ids=["starting", "ready"])
async def test_orders_may_come_at_any_moment_of_a_process_that_ends(
    ready: bool, worker: tuple[WorkerProcess, Owner, ControlChannel], hand_off: Pair
) -> None:
    process, _owner, other = worker
    system: Any = Process()
    process._process = system
    if ready:
        process._note_ready("trio")
        process.state = _worker_process.WorkerState.LEAVING

    def give_orders() -> None:
        process.stop_accepting()
        process.drain(1)

    instrument = AtTheEndOfNurseries(give_orders)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend, process, hand_off[0])
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(instrument)
            other.close()
            system.kill()
    trio.lowlevel.remove_instrument(instrument)
    assert instrument.calls
    assert instrument.errors == []


async def attend(process: WorkerProcess, hand_off: socket.socket) -> None:
    with process._scope:
        await process._attend(hand_off)


@pytest.mark.parametrize("message", [Drain(1), ConnectionsEnded((1,))], ids=lambda message: type(message).__name__)
async def test_a_worker_that_says_what_none_does_is_not_understood(
    message: Drain | ConnectionsEnded, worker: tuple[WorkerProcess, Owner, ControlChannel]
) -> None:
    process, _owner, other = worker
    await other.send(message)
    await other.send_eof()
    await process._listen()
    assert process.failure is not None
    assert "it cannot be understood" in process.failure.reason


def test_an_exception_is_described_without_the_groups_it_is_alone_in() -> None:
    reason, text = described(ExceptionGroup("outer", [ExceptionGroup("inner", [LookupError("it")])]))
    assert reason == "LookupError: it"
    assert text.strip() == "LookupError: it"
    reason, text = described(ExceptionGroup("both", [LookupError("one"), ValueError("two")]))
    assert "both" in reason
    assert "one" in text
    assert "two" in text


# --- the log ---


@pytest.fixture
def forwarder() -> Iterator[_log_forwarding.LogForwarder]:
    found = _log_forwarding.LogForwarder()
    yield found
    found.close()


def record(text: str, *arguments: object, **attributes: object) -> logging.LogRecord:
    made = logging.LogRecord("gain_trio.test", logging.WARNING, __file__, 1, text, arguments, None)
    made.__dict__.update(attributes)
    return made


async def forwarded(forwarder: _log_forwarding.LogForwarder) -> list[LogRecords]:
    own, other = await control_pair()
    found = []

    async def send() -> None:
        await forwarder.send_all(own)
        await own.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while (message := await other.receive()) is not None:
            assert isinstance(message, LogRecords)
            found.append(message)
    own.close()
    other.close()
    return found


async def test_a_record_arrives_with_its_text_its_attributes_and_its_traceback(
    forwarder: _log_forwarding.LogForwarder, caplog: pytest.LogCaptureFixture
) -> None:
    made = record("%s of %d", "one", 2, peer="127.0.0.1:1", odd=lambda: None)
    error = LookupError("inside")
    made.exc_info = (LookupError, error, None)
    forwarder.emit(made)
    [message] = await forwarded(forwarder)
    _log_forwarding.log_for(message)
    [arrived] = caplog.records
    assert (arrived.getMessage(), arrived.name, arrived.levelno) == ("one of 2", "gain_trio.test", logging.WARNING)
    assert arrived.__dict__["peer"] == "127.0.0.1:1"
    assert not hasattr(arrived, "odd"), "what cannot be pickled is left out"
    assert "LookupError: inside" in caplog.text


async def test_a_formatter_sees_the_type_the_message_and_the_traceback_of_an_exception(
    forwarder: _log_forwarding.LogForwarder, caplog: pytest.LogCaptureFixture
) -> None:
    made = record("it failed")
    try:
        os.stat("/nonexistent/\n\x1b[31m")
    except OSError:
        made.exc_info = sys.exc_info()
    forwarder.emit(made)
    [message] = await forwarded(forwarder)
    _log_forwarding.log_for(message)
    [arrived] = caplog.records
    assert arrived.exc_info is not None
    kind, error, traceback = arrived.exc_info
    assert kind is not None
    assert (kind.__name__, kind.__module__, traceback) == ("FileNotFoundError", "builtins", None)
    assert str(error) == "[Errno 2] No such file or directory: '/nonexistent/\\n\\x1b[31m'"
    own = logging.Formatter().formatException(arrived.exc_info)
    assert own.endswith(str(error))
    for text in (own, str(arrived.exc_text)):
        assert f'File "{__file__}"' in text
        assert "\x1b" not in text
    shown = json.loads(JsonFormatter().format(arrived))
    assert shown["exception"] == arrived.exc_text


@pytest.mark.parametrize("exc_info", [None, (None, None, None)], ids=["none", "empty"])
async def test_a_record_without_an_exception_arrives_without_one(
    exc_info: Any, forwarder: _log_forwarding.LogForwarder, caplog: pytest.LogCaptureFixture
) -> None:
    made = record("nothing failed")
    made.exc_info = exc_info
    forwarder.emit(made)
    [message] = await forwarded(forwarder)
    _log_forwarding.log_for(message)
    [arrived] = caplog.records
    assert (arrived.exc_info, arrived.exc_text) == (None, None)


async def test_a_filter_that_raises_is_told_of_as_a_handler_that_does(
    forwarder: _log_forwarding.LogForwarder, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "bad":
            raise LookupError("the filter's own")
        return True

    for text in ("bad", "good"):
        forwarder.emit(record(text))
    [message] = await forwarded(forwarder)
    logger = logging.getLogger("gain_trio.test")
    logger.addFilter(refuse)
    try:
        _log_forwarding.log_for(message)
    finally:
        logger.removeFilter(refuse)
    assert [arrived.getMessage() for arrived in caplog.records] == ["good"]
    assert "LookupError: the filter's own" in capsys.readouterr().err


async def test_more_records_than_can_wait_are_dropped_and_counted(
    forwarder: _log_forwarding.LogForwarder, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(_log_forwarding.MOST_WAITING + 5):
        forwarder.emit(record("number %d", number))
    messages = await forwarded(forwarder)
    assert sum(len(message.records) for message in messages) == _log_forwarding.MOST_WAITING
    assert sum(message.dropped for message in messages) == 5
    for message in messages:
        _log_forwarding.log_for(message)
    assert "5 log records of a worker process were dropped" in caplog.text


async def test_a_long_record_is_cut(forwarder: _log_forwarding.LogForwarder) -> None:
    long = "x" * 10 * _log_forwarding.LARGEST_RECORD
    forwarder.emit(record(long, attribute=long))
    [message] = await forwarded(forwarder)
    for name in ("msg", "attribute"):
        assert len(message.records[0][name]) < _log_forwarding.LARGEST_RECORD + 10


async def test_long_records_go_into_several_messages_and_one_that_is_too_long_into_none(
    forwarder: _log_forwarding.LogForwarder,
) -> None:
    long = "\N{SNOWMAN}" * _log_forwarding.LARGEST_RECORD  # whose limit is in characters: here of 3 bytes each
    count = _log_forwarding.MOST_AT_ONCE
    for number in range(count):
        forwarder.emit(record(f"{number} {long}"))
    forwarder.emit(record("too long", **{f"attribute_{number}": f"{number} {long}" for number in range(50)}))
    forwarder.emit(record("last"))
    messages = await forwarded(forwarder)
    arrived = [attributes["msg"].split()[0] for message in messages for attributes in message.records]
    assert arrived == [*map(str, range(count)), "last"]
    assert sum(message.dropped for message in messages) == 1


async def test_records_of_other_threads_are_sent(forwarder: _log_forwarding.LogForwarder) -> None:
    own, other = await control_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forwarder.run, own)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(forwarder.emit, record("from a thread"))
        with trio.fail_after(PATIENCE):
            message = await other.receive()
        nursery.cancel_scope.cancel()
    assert isinstance(message, LogRecords)
    assert message.records[0]["msg"] == "from a thread"
    own.close()
    other.close()


async def test_a_cancelled_sender_neither_loses_records_nor_has_them_sent_twice(
    forwarder: _log_forwarding.LogForwarder,
) -> None:
    sock, other = socket.socketpair()
    control = ControlChannel(sock)
    texts = [
        f"{number} " + "x" * 30_000 for number in range(_log_forwarding.MOST_AT_ONCE)
    ]  # more than the kernel takes
    for text in texts:
        forwarder.emit(record(text))
    with trio.CancelScope() as before_its_turn:
        before_its_turn.cancel()
        await forwarder.send_all(control)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forwarder.send_all, control)
        await trio.testing.wait_all_tasks_blocked()  # the kernel is full
        forwarder.emit(record("one more"))
        nursery.start_soon(forwarder.send_all, control)
        await trio.testing.wait_all_tasks_blocked()  # it waits for its turn
        nursery.cancel_scope.cancel()
    reader = ControlChannel(other)
    arrived = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forwarder.send_all, control)
        nursery.start_soon(forwarder.send_all, control)
        with trio.fail_after(PATIENCE):
            while len(arrived) <= len(texts):
                message = await reader.receive()
                assert isinstance(message, LogRecords)
                arrived += [attributes["msg"] for attributes in message.records]
    assert arrived == [*texts, "one more"]
    await control.send_eof()
    assert await reader.receive() is None
    control.close()
    reader.close()


def test_what_cannot_be_sent_any_more_is_written(
    forwarder: _log_forwarding.LogForwarder, capsys: pytest.CaptureFixture[str]
) -> None:
    forwarder.emit(record("last %s", "words"))
    forwarder.give_up()
    assert capsys.readouterr().err == "WARNING: last words\n"


async def test_nothing_of_all_this_leaks() -> None:
    before = open_descriptors()
    own, other = await control_pair()
    own.close()
    other.close()
    with socket_pair() as (one, _peer):
        pair = _hand_off.open_pair()
        with pair[0], pair[1]:
            await _hand_off.send(pair[0], 1, [0], [AcceptedSocket(one)])
    await wait_released()
    assert open_descriptors() == before
