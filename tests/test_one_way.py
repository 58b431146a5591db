"""trio.testing.check_one_way_stream: each direction of a connection, also when the other one is shut down."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from support.pairs import PATIENCE, Pair, clog, open_pair, open_unix_pair
from trio.testing import check_one_way_stream

from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.features]


@pytest.mark.parametrize("other_half", ["open", "shut"])
@pytest.mark.parametrize("direction", ["to the server", "to the client"])
@pytest.mark.parametrize("kind", ["TCP", "Unix", "Unix with descriptors"])
async def test_trios_own_check(tmp_path: Path, kind: str, direction: str, other_half: str) -> None:
    made: list[Connection] = []

    async def make() -> Pair:
        """The sending and the receiving connection."""
        if kind == "TCP":
            client, served = await open_pair()
        else:
            client, served = await open_unix_pair(
                f"unix://{tmp_path}/{len(made)}", pass_fds=kind == "Unix with descriptors"
            )
        made.extend((client, served))
        source, target = (client, served) if direction == "to the server" else (served, client)
        if other_half == "shut":
            await target.send_eof()
            assert await source.receive() == b""
        return source, target

    async def make_clogged() -> Pair:
        source, target = await make()
        await clog(source)
        return source, target

    with trio.fail_after(PATIENCE):
        await check_one_way_stream(make, make_clogged)
    for connection in made:
        connection.abort()
