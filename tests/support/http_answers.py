"""A request, and what the answers to it are to another project's parser."""

from __future__ import annotations

import h11

GET = b"GET /plaintext HTTP/1.1\r\nHost: here\r\n\r\n"


class Answer:
    """One response, read by another project's parser."""

    def __init__(self, response: h11.Response | h11.InformationalResponse, body: bytes) -> None:
        self.status = response.status_code
        self.version = response.http_version
        self.fields = {name.decode(): value.decode() for name, value in response.headers}
        assert len(self.fields) == len(list(response.headers)), "a field twice"
        self.body = body


def answers(received: bytes, *methods: str, reset: bool = False) -> list[Answer]:
    """Every response in there.  ``methods``: of the requests, GET where there are fewer."""
    found = []
    wanted = iter(methods)
    while received:
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=next(wanted, "GET"), target="/", headers=[("Host", "here")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(received)
        body = b""
        while True:
            event = parser.next_event()
            if isinstance(event, h11.InformationalResponse):
                found.append(Answer(event, b""))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage), event
                break
        found.append(Answer(response, body))
        received, _closed = parser.trailing_data
    return found


def statuses(received: bytes, *methods: str) -> list[int]:
    return [answer.status for answer in answers(received, *methods)]
