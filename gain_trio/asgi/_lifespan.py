"""The lifespan of an ASGI app: its start before the first request of a process, and its end after the last.

The server calls the app once with a scope of type ``lifespan``, in a task of its own, and talks to that call::

    server                                app
    lifespan.startup                ──>
                                    <──   lifespan.startup.complete, or .failed, or an exception
    requests, with copies of scope["state"]
    lifespan.shutdown               ──>
                                    <──   lifespan.shutdown.complete, or .failed, or an exception
                                          the call returns

*Which apps have one.*  An app without a lifespan raises at once: most compare ``scope["type"]`` and know no third value.  So
with ``"auto"`` an exception, or a return, before any answer means that there is none.  A framework whose user's code fails
says so by ``lifespan.startup.failed`` first, and that is a failure in every mode.

*Errors propagate.*  The app's own exception is what ends the server, with its traceback.  One that leaves the call while
requests are served ends the server, too, as one in any nursery would: whatever the lifespan held is gone then.  Worker
processes are replaced.

*The last answer ends the call.*  After ``lifespan.startup.failed`` and after the end of its shutdown an app has nothing left
to do.  It has some seconds to return or to raise; then the server cancels it.

The context manager here is entered and left as every lifespan of a server is (``_server_lifespan.py``): a cancellation does
not reach the call, which gets its shutdown event instead, and the time for that is bounded.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeAlias, final

import trio

from gain_trio._server import ungrouped
from gain_trio._transports import shown

from ._asgi_types import AsgiApp, Message

AppLifespan: TypeAlias = Literal["auto", "on", "off"]
"""``"auto"``: apps that have a lifespan get it.  ``"on"``: an app without one is an error.  ``"off"``: none has one."""

SPEC_VERSION: Final = "2.0"
"""The version of ASGI's lifespan specification."""

RETURNS_WITHIN: Final = 5.0
"""Seconds for which the call may go on after its last answer."""

logger = logging.getLogger("gain_trio")


class _Phase(enum.Enum):
    """How far the conversation has come; each answer of the app has one phase in which it is allowed."""

    STARTING = "lifespan.startup"
    STARTED = "lifespan.startup.complete"
    NOT_STARTED = "lifespan.startup.failed"
    ENDING = "lifespan.shutdown"
    ENDED = "lifespan.shutdown.complete"
    NOT_ENDED = "lifespan.shutdown.failed"


_ANSWERS: Final = {
    "lifespan.startup.complete": (_Phase.STARTING, _Phase.STARTED),
    "lifespan.startup.failed": (_Phase.STARTING, _Phase.NOT_STARTED),
    "lifespan.shutdown.complete": (_Phase.ENDING, _Phase.ENDED),
    "lifespan.shutdown.failed": (_Phase.ENDING, _Phase.NOT_ENDED),
}
"""The messages of an app, with the phases before and after them."""


@asynccontextmanager
async def app_lifespan(app: AsgiApp, name: str, mode: AppLifespan) -> AsyncIterator[dict[str, Any] | None]:
    """Start an app, and end it.  What it yields is the state for the app's requests, None of an app without a lifespan.

    Raises:
      RuntimeError: the app says that it has failed, or with ``"on"`` that it has no lifespan.

    And what the app raises.
    """
    if mode == "off":
        yield None
        return
    call = _LifespanCall(app, name)
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.run, name=f"gain_trio lifespan of {name}")
            await call.until_started(mode)
            try:
                yield call.state
            finally:
                await call.end()


@final
class _LifespanCall:
    """The app's call, and the messages that it gets and sends."""

    def __init__(self, app: AsgiApp, name: str) -> None:
        self._app = app
        self._name = name
        self._state: dict[str, Any] = {}
        self._phase = _Phase.STARTING
        self._says_why = ""  # what the app says of a failure
        self._has_asked = False  # for the startup event
        self._error: Exception | None = None  # that the app raised before it had started
        self._scope = trio.CancelScope()
        self._answered = trio.Event()  # the startup event
        self._ends = trio.Event()
        self._over = trio.Event()

    @property
    def state(self) -> dict[str, Any] | None:
        """What the app has put into ``scope["state"]``; None of an app without a lifespan."""
        return None if self._phase is _Phase.STARTING else self._state

    async def run(self) -> None:
        """Call the app, and return when its call has ended."""
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "state": self._state,
        }
        try:
            with self._scope:
                await self._app(scope, self._receive, self._send)
            if self._scope.cancelled_caught and self._scope.deadline < math.inf:
                logger.warning(
                    "the app %s was cancelled: it has not returned %g seconds after %s",
                    shown(self._name),
                    RETURNS_WITHIN,
                    self._phase.value,
                )
        except Exception as error:
            if self._phase not in {_Phase.STARTING, _Phase.NOT_STARTED}:
                raise
            self._error = error
        finally:
            self._answered.set()
            self._over.set()

    async def _receive(self) -> Message:
        if not self._has_asked:
            self._has_asked = True
            await trio.lowlevel.checkpoint()
            return {"type": "lifespan.startup"}
        if self._phase in {_Phase.STARTING, _Phase.STARTED}:
            await self._ends.wait()
            if self._phase is _Phase.STARTED:
                self._phase = _Phase.ENDING
                return {"type": "lifespan.shutdown"}
        if self._phase is not _Phase.ENDING:
            self._scope.deadline = math.inf
            self._scope.cancel()  # nothing more will ever come, and an app that waits for it does not return
        await trio.sleep_forever()
        raise AssertionError

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        before, after = _ANSWERS.get(kind, (None, None))
        if after is None or before is not self._phase:
            raise RuntimeError(f"the app sends {kind!r}, and the event that it answers is {self._phase.value!r}")
        self._phase = after
        self._says_why = str(message.get("message", ""))
        if after is not _Phase.STARTED:
            self._scope.deadline = trio.current_time() + RETURNS_WITHIN
        if after is not _Phase.NOT_STARTED:  # of a failure the exception that follows says more
            self._answered.set()
        await trio.lowlevel.checkpoint()

    async def until_started(self, mode: AppLifespan) -> None:
        """Wait until the app has started, or turns out to have no lifespan."""
        await self._answered.wait()
        if self._phase is _Phase.NOT_STARTED:
            raise self._error or RuntimeError(
                f"the app {self._name} could not start: {self._says_why or 'it says no more'}"
            )
        if self._phase is _Phase.STARTING:
            if mode == "on":
                raise self._error or RuntimeError(
                    f"the app {self._name} has no lifespan: its call returned without lifespan.startup.complete"
                )
            why = "it returns" if self._error is None else f"{type(self._error).__name__}: {self._error}"
            logger.info("the app %s has no lifespan (%s)", shown(self._name), shown(why))

    async def end(self) -> None:
        """Have the app end, and wait until its call has ended.

        Raises:
          RuntimeError: the app says that it has failed.
        """
        self._ends.set()
        await self._over.wait()
        if self._phase is _Phase.NOT_ENDED:
            raise RuntimeError(f"the app {self._name} could not end: {self._says_why or 'it says no more'}")
