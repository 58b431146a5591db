"""The answers to the requests of one connection as bytes in and bytes out, without any I/O.

The pull handler ``http`` and the callbacks move the bytes and share this exchange.  The reader (``_request_reader.py``)
reads the requests, and a :class:`Site` gives them their meaning.

*What was answered is remembered*: a site keeps the answers to requests that the memory of requests holds, as long as they
stay true (:attr:`Site.known`).  A batch of such requests costs no work for each of them in Python, and a batch that is equal
to the last one, of whatever connection, costs one comparison.

*Answers keep the order of the requests*: the exchange appends an answer when it has read the whole request, body included,
and looks at the next request after that.  It skips bodies and never stores them.  After a refusal, or an answer with
``Connection: close``, it reads nothing any more (RFC 9112, 9.6).  The caller limits the time: :attr:`Exchange.phase` shows
when a request has begun and not ended.
"""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, cast, final

from ._request_fields import Memory, Refused, Request, RequestMemory
from ._request_reader import MAX_HEAD, Limits, RequestReader

MAX_BODY: Final = 1024 * 1024
"""Bytes of a request's body."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_BATCH: Final = 8192
"""Bytes of the longest batch of requests that is remembered as a whole."""
_MOST_KNOWN: Final = 256
"""The most requests whose answers are kept."""
_LIMITS: Final = Limits(head=MAX_HEAD, body=MAX_BODY)
_MEMORY: Final = RequestMemory()


class Phase(enum.Enum):
    """The state of an :class:`Exchange`."""

    IDLE = enum.auto()
    """Between requests."""
    UNFINISHED = enum.auto()
    """A request has begun and not ended."""
    OVER = enum.auto()
    """The last answer is made; the caller sends it and closes the connection."""


# Python takes longer to find a member in an enum than to read a usual request.
_IDLE: Final = Phase.IDLE
_OVER: Final = Phase.OVER


@final
class KnownAnswers:
    """The answers to requests that were seen before and do not end the connection, as long as these answers are true.

    A site replaces it as a whole: another thread that has the one of before writes nothing into the new one.
    """

    __slots__ = ("batch", "by_request")

    def __init__(self) -> None:
        self.by_request: Memory[Request, bytes] = Memory(_MOST_KNOWN)
        self.batch: tuple[bytes | None, bytes] = (None, b"")
        """The last batch of such requests, and the answers to it."""


class Site(abc.ABC):
    """The part of a server that gives requests their meaning."""

    clock: Callable[[], float]
    """The time, in seconds since the epoch."""
    since: float = -math.inf
    """The time of the last :meth:`refresh`, as a whole number of seconds."""
    known: KnownAnswers
    """The answers of this second."""

    @abc.abstractmethod
    def refresh(self, now: float) -> None:
        """The exchange calls this before it answers in another second: answers may have the time in them."""

    @abc.abstractmethod
    def answer(self, method: bytes, target: bytes, connection: bytes) -> bytes:
        """Return the whole response; ``connection`` is the value of its field ``Connection``, ``b""`` for none."""

    @abc.abstractmethod
    def refusal(self, status: HTTPStatus, reason: str, *, with_body: bool) -> bytes:
        """Return the response to a request that the reader refuses; it has ``Connection: close``.

        Args:
          status: its code and phrase.
          reason: the text of the body.
          with_body: False for a HEAD request.
        """


@final
class Exchange:
    """The requests of one connection, and the answers to them."""

    __slots__ = ("_reader", "_request", "_site", "has_answered", "phase")

    def __init__(self, site: Site) -> None:
        self._site = site
        self._reader = RequestReader(_MEMORY, _LIMITS)
        self._request: Request | None = None  # the one whose body is being skipped, or was refused
        self.phase = Phase.IDLE
        self.has_answered = False
        """Whether the last data contained the end of a request, so that an unfinished one has begun in that data."""

    def feed(self, data: bytes) -> bytes:
        """Read ``data`` from the peer and return the answers to send; none after :attr:`Phase.OVER`."""
        site, reader, phase = self._site, self._reader, self.phase
        now = site.clock()
        if not 0.0 <= now - site.since < 1.0:
            site.refresh(now)
        if phase is _IDLE:
            known, last = site.known, reader.last
            batch = known.batch
            if data == batch[0]:
                answer: bytes | None = batch[1]
            elif last is not None and data == last.whole:
                answer = known.by_request.get(last)
            else:
                answer = None
            if answer is None:
                return self._feed_idle(data)
            self.has_answered = True
            reader.empty_lines = 0
            return answer
        if phase is _OVER:
            return b""
        reader.feed(data)
        return self._answer_fed(())

    def _feed_idle(self, data: bytes) -> bytes:
        """Do :meth:`feed` between two requests, with a look-up for each request whose answer is known."""
        known, reader = self._site.known, self._reader
        repeated = reader.feed_repeated(data)
        if not repeated or reader.has_more:
            return self._answer_fed(repeated)
        by_request, first = known.by_request, repeated[0]
        if repeated.count(first) == len(repeated) and (answer := by_request.get(first)) is not None:  # nearly always
            answers = answer * len(repeated)
        else:
            found = list(map(by_request.get, repeated))
            answers = b"".join(cast("list[bytes]", found)) if all(found) else self._answer_fed(repeated)
        if self.phase is _IDLE:
            self.has_answered = True
            if len(data) <= _MAX_BATCH:
                known.batch = data, answers
        return answers

    def _answer_fed(self, repeated: Iterable[Request]) -> bytes:
        """Answer these requests, and remember the answers; then those that the reader has."""
        known = self._site.known.by_request
        answers: list[bytes] = []
        self.has_answered = False
        try:
            for request in repeated:
                if not self._answer(request, answers):
                    return b"".join(answers)
                known.remember(request, answers[-1])
            following = self._request or self._reader.next_request()
            while following is not None and self._answer(following, answers):
                following = self._reader.next_request()
        except Refused as refusal:
            self._give_up(refusal, answers)
        if not self._is_over():
            idle = self._request is None and not self._reader.unread
            self.phase = Phase.IDLE if idle else Phase.UNFINISHED
            self.has_answered = bool(answers) and answers[0] is not CONTINUE  # a 100 Continue is always the last
        return b"".join(answers)

    def _is_over(self) -> bool:
        return self.phase is Phase.OVER

    def _answer(self, request: Request, answers: list[bytes]) -> bool:
        """Answer a request if it is there whole.  Returns whether to look for another one."""
        reader = self._reader
        framing = request.framing
        if reader.in_body:
            if self._request is None and framing.expects and not reader.unread:
                answers.append(CONTINUE)  # a client that has begun to send the body needs no invitation
            self._request = request
            reader.take_body()
            while reader.is_midway:
                reader.take_body()
            if reader.in_body:
                return False
        self._request = None
        answers.append(self._site.answer(request.method, request.target, framing.connection))
        if framing.closes:
            self.phase = Phase.OVER
        return not framing.closes

    def feed_eof(self) -> bytes:
        """End the exchange because the peer has ended its side, and return what is to be sent."""
        return self._end_in_the_middle(HTTPStatus.BAD_REQUEST, "the connection ended in the middle of a request")

    def too_slow(self) -> bytes:
        """End the exchange because a request has taken too long, and return what is to be sent."""
        return self._end_in_the_middle(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")

    def _end_in_the_middle(self, status: HTTPStatus, reason: str) -> bytes:
        answers: list[bytes] = []
        if self.phase is Phase.UNFINISHED:
            self._site.refresh(self._site.clock())
            self._give_up(Refused(status, reason), answers)
        self.phase = Phase.OVER
        return b"".join(answers)

    def _give_up(self, refusal: Refused, answers: list[bytes]) -> None:
        request, reader = self._request, self._reader
        is_head = reader.wants_no_content if request is None else request.method == b"HEAD"
        answers.append(self._site.refusal(refusal.status, str(refusal), with_body=not is_head))
        self.phase = Phase.OVER
        reader.take_unread()
