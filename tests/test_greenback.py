"""greenback, by which synchronous code awaits: its coroutines switch stacks in the middle of what C drives."""

from __future__ import annotations

from typing import Any

import greenback
import pytest
import trio
import trio.testing
from support.accelerated import run
from support.pairs import PATIENCE, open_pair

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.connections,
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]


def test_synchronous_code_awaits_what_trio_has() -> None:
    send, receive = trio.open_memory_channel[int](0)
    lock = trio.Lock()

    def sync(number: int) -> int:
        with greenback.async_context(trio.open_nursery()) as nursery:
            nursery.start_soon(send.send, number)
            got = greenback.await_(receive.receive())
        with greenback.async_context(lock):
            greenback.await_(trio.lowlevel.checkpoint())
        with trio.move_on_after(0) as scope:
            greenback.await_(trio.sleep_forever())
        assert scope.cancelled_caught
        return got

    async def main() -> list[int]:
        await greenback.ensure_portal()
        with trio.fail_after(PATIENCE):
            return [sync(number) for number in range(10)]

    assert run(True, main) == list(range(10))


def test_synchronous_code_awaits_streams_and_connections() -> None:
    def talk(client: Any, served: Any) -> None:
        for number in range(10):
            greenback.await_(client.send_all(b"%d" % number))
            assert greenback.await_(served.receive_some()) == b"%d" % number

    async def main() -> None:
        await greenback.ensure_portal()
        with trio.fail_after(PATIENCE):
            streams = [trio.SocketStream(sock) for sock in trio.socket.socketpair()]
            connections = await open_pair()
            for client, served in (streams, connections):
                async with client, served:
                    talk(client, served)

    run(True, main)


def test_a_task_gets_its_portal_while_another_one_runs() -> None:
    """The coroutine that the run drives is replaced in the middle of the task."""
    steps: list[str] = []

    async def child() -> None:
        await trio.lowlevel.checkpoint()
        steps.append("waits")
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.testing.wait_all_tasks_blocked()
            [task] = nursery.child_tasks
            greenback.bestow_portal(task)
            assert greenback.has_portal(task)
            nursery.cancel_scope.cancel()
        steps.append("ended")

    run(True, main)
    assert steps == ["waits", "ended"]


@pytest.mark.parametrize("first", [True, False], ids=["before the handler", "in the handler"])
def test_a_handler_that_its_task_resumes_itself(first: bool) -> None:
    """With a portal it is not the coroutine that awaits the handler which the run drives; it is the portal's."""
    steps: list[bytes] = []

    async def handler(served: Any) -> bytes:
        steps.append(await served.receive())
        if not first:
            await greenback.ensure_portal()
        steps.append(greenback.await_(served.receive()))
        return bytes(await served.receive())

    async def outer(served: Any) -> None:
        if first:
            await greenback.ensure_portal()
        steps.append(await served._handled(handler(served), outer.__code__))
        await trio.lowlevel.checkpoint()
        greenback.await_(trio.lowlevel.checkpoint())
        steps.append(b"ended")

    async def main() -> None:
        client, served = await open_pair()
        with trio.fail_after(PATIENCE):
            async with client, served, trio.open_nursery() as nursery:
                nursery.start_soon(outer, served)
                for data in (b"x", b"y", b"z"):
                    await trio.testing.wait_all_tasks_blocked()
                    await client.send(data)

    run(True, main)
    assert steps == [b"x", b"y", b"z", b"ended"]
