"""Lines of the log about something that happens again and again."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gain_trio._server._acceptor import Acceptor
from gain_trio._server._dispatcher import Dispatcher
from gain_trio._server._log_throttle import log_throttle, since_last
from gain_trio._server._time_limits import LOG_INTERVAL
from gain_trio._transports import Connection

pytestmark = pytest.mark.one_backend


async def test_the_first_and_then_one_a_minute(mock_clock: MockClock) -> None:
    line = log_throttle("something")
    assert log_throttle("something") is line
    assert line.count() == 0
    assert [line.count() for _ in range(5)] == [None] * 5
    assert log_throttle("something else").count() == 0
    mock_clock.jump(LOG_INTERVAL - 0.001)
    assert line.count() is None
    mock_clock.jump(0.001)
    assert line.count() == 6
    mock_clock.jump(10 * LOG_INTERVAL)
    assert line.count() == 0
    assert since_last(0) == ""
    assert since_last(6) == " (6 more times since the last such line)"


async def test_one_line_for_all_listeners(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    class Refused:
        """A listener of a process that is out of descriptors."""

        attempts = 0
        local_address = ("127.0.0.1", 1)

        async def accept(self) -> Connection:
            await trio.lowlevel.checkpoint()
            Refused.attempts += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def acceptor() -> Acceptor:
        listener: Any = Refused()
        dispatcher: Any = Dispatcher.__new__(Dispatcher)
        return Acceptor(listener, dispatcher, None, lambda: None)

    with caplog.at_level(logging.ERROR, "gain_trio"), trio.move_on_after(2 * LOG_INTERVAL + 1):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(acceptor().run)
    assert Refused.attempts >= 5 * 2 * LOG_INTERVAL * 9
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "more times" not in lines[0]
    assert all("more times since the last such line" in line for line in lines[1:])
