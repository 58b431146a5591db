"""What a server's endpoint of metrics says."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import gain_trio
from gain_trio import Server

from .pairs import receive_all

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def ask_metrics(server: Server, request: bytes = GET) -> tuple[str, dict[str, str], str]:
    """The status, the fields and the content of the answer."""
    [(host, port)] = server.metrics_addresses
    async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
        await client.send(request)
        head, _, content = (await receive_all(client)).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    if not request.startswith(b"HEAD"):
        assert int(fields["content-length"]) == len(content)
    return status, fields, content


async def scrape(server: Server) -> dict[Any, float]:
    """Samples by name and the values of labels."""
    status, fields, content = await ask_metrics(server)
    assert status == "HTTP/1.1 200 OK"
    assert fields["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }
