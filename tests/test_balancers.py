"""The balancers' choices, a program's own balancer, faulty ones, and the tree of tasks."""

from __future__ import annotations

import contextlib
import errno
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from support.pairs import receive_all, until
from support.servers import LOCAL, connect, echo, serving

import gain_trio
from gain_trio import Balancer, Connection, ConsumerView, Server
from gain_trio._server._balancer import LeastConnections, RoundRobin, SourceIpHash

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.connections


@attrs.define(eq=False)
class View:
    """A consumer as a balancer sees it."""

    index: int
    active: int = 0
    connections: int = 0

    def take(self) -> None:
        self.active += 1
        self.connections += 1


def views(count: int) -> list[View]:
    return [View(index) for index in range(count)]


# --- by themselves ---


def test_round_robin_is_exact() -> None:
    consumers = views(3)
    balancer = RoundRobin()
    assert [balancer.pick(None, consumers).index for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_connections_is_within_one_while_connections_come() -> None:
    consumers = views(5)
    balancer = LeastConnections()
    for _ in range(23):
        balancer.pick(None, consumers).take()
        active = [consumer.active for consumer in consumers]
        assert max(active) - min(active) <= 1
    consumers[3].active -= 4
    assert [balancer.pick(None, consumers) for _ in range(2)] == [consumers[3]] * 2


def test_least_connections_fills_up_after_connections_have_gone() -> None:
    consumers = views(4)
    balancer = LeastConnections()
    chance = random.Random(1)
    for _ in range(200):
        balancer.pick(None, consumers).take()
    for consumer in consumers:
        consumer.active -= chance.randrange(40)
    for _ in range(200):
        low = min(consumer.active for consumer in consumers)
        picked = balancer.pick(None, consumers)
        assert picked.active == low
        picked.take()
    active = [consumer.active for consumer in consumers]
    assert max(active) - min(active) <= 1


def test_consumers_of_the_same_load_take_turns() -> None:
    consumers = views(3)
    balancer = LeastConnections()
    seen = []
    for _ in range(6):  # one connection at a time
        picked = balancer.pick(None, consumers)
        picked.take()
        picked.active -= 1
        seen.append(picked.index)
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 16])
def test_source_ip_hash_is_stable_and_spreads(count: int) -> None:
    consumers = views(count)
    chance = random.Random(2)
    hits: Counter[int] = Counter()
    for number in range(4096):
        host = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        picked = SourceIpHash().pick((host, chance.randrange(65536)), consumers)
        assert SourceIpHash().pick((host, chance.randrange(65536)), consumers) is picked
        hits[picked.index] += 1
    mean = 4096 / count
    assert all(abs(hits[index] - mean) < 0.25 * mean for index in range(count)), hits


def test_source_ip_hash_of_the_same_address_written_otherwise() -> None:
    consumers = views(1000)
    pick = SourceIpHash().pick
    assert pick(("127.0.0.1", 1), consumers) is pick(("::ffff:127.0.0.1", 2, 0, 0), consumers)
    assert pick(("fe80::1%eth0", 1, 0, 2), consumers) is pick(("fe80::1%eth1", 2, 0, 3), consumers)
    assert pick(("2001:db8::1", 1, 0, 0), consumers) is pick(("2001:0db8:0::1", 2, 0, 0), consumers)
    assert pick(("2001:db8::1", 1, 0, 0), consumers) is not pick(("2001:db8::2", 1, 0, 0), consumers)


def test_source_ip_hash_of_unix_peers_goes_round() -> None:
    consumers = views(3)
    balancer = SourceIpHash()
    assert [balancer.pick("", consumers).index for _ in range(4)] == [0, 1, 2, 0]


# --- in a server ---


async def connect_from(host: str, server: Server) -> trio.SocketStream:
    return await trio.open_tcp_stream(*server.addresses[0], local_address=host)


async def accepted_by(server: Server, before: Sequence[int]) -> int:
    """The consumer that has got one more connection."""
    await until(lambda: server.statistics().connections_by_consumer != tuple(before))
    now = server.statistics().connections_by_consumer
    [index] = [index for index, (then, count) in enumerate(zip(before, now, strict=True)) if count != then]
    assert now[index] == before[index] + 1
    return index


async def test_least_connections_in_a_server() -> None:
    chance = random.Random(3)
    async with serving(echo, workers=3, balancer="least_connections") as server:
        clients: list[Connection] = []
        for number in range(1, 13):
            clients.append(await connect(server))
            await until(lambda number=number: server.active_connections == number)  # type: ignore[misc]
            active = server.statistics().active_by_consumer
            assert max(active) - min(active) <= 1
        for client in chance.sample(clients, 7):
            clients.remove(client)
            await client.aclose()
        await until(lambda: server.active_connections == 5)
        for _ in range(7):
            before = server.statistics()
            clients.append(await connect(server))
            index = await accepted_by(server, before.connections_by_consumer)
            assert before.active_by_consumer[index] == min(before.active_by_consumer)
        assert server.statistics().active_by_consumer == (4, 4, 4)
        for client in clients:
            await client.aclose()


async def test_source_ip_hash_in_a_server() -> None:
    async with serving(echo, workers=4, balancer="source_ip_hash") as server:
        found: dict[str, set[int]] = {}
        for host in [f"127.{n % 7}.{n}.1" for n in range(1, 33)] * 2:
            before = server.statistics().connections_by_consumer
            async with await connect_from(host, server):
                found.setdefault(host, set()).add(await accepted_by(server, before))
        assert all(len(consumers) == 1 for consumers in found.values()), "whatever the port"
        assert set.union(*found.values()) == {0, 1, 2, 3}


class Remembering:
    """The last of the consumers, always; and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, list[tuple[int, int, int]]]] = []

    def pick(self, peer: Any, consumers: Sequence[ConsumerView]) -> ConsumerView:
        assert all(isinstance(consumer, ConsumerView) for consumer in consumers)
        self.asked.append((peer, [(each.index, each.active, each.connections) for each in consumers]))
        return consumers[-1]


async def test_a_balancer_of_ones_own() -> None:
    balancer = Remembering()
    checked: Balancer = balancer  # that it is one is the type checker's to see
    async with serving(echo, workers=3, balancer=checked) as server:
        async with await connect_from("127.0.0.9", server) as client:
            peer = client.socket.getsockname()
            await until(lambda: len(balancer.asked) == 1)
            async with await connect(server):
                await until(lambda: server.active_connections == 2)
        assert balancer.asked[0] == (peer, [(0, 0, 0), (1, 0, 0), (2, 0, 0)])
        assert balancer.asked[1][1] == [(0, 0, 0), (1, 0, 0), (2, 1, 1)]
        assert server.statistics().connections_by_consumer == (0, 0, 2)


async def test_a_balancer_of_ones_own_is_asked_where_there_is_one_consumer() -> None:
    asked: list[int] = []

    class Only:
        def pick(self, _peer: object, consumers: Sequence[ConsumerView], /) -> ConsumerView:
            asked.append(len(consumers))
            return consumers[0]

    async with serving(echo, workers=1, balancer=Only()) as server:
        for _ in range(2):
            await (await connect(server)).aclose()
        await until(lambda: len(asked) == 2)
    assert asked == [1, 1]


async def test_the_proxys_address_is_what_a_balancer_sees() -> None:
    balancer = Remembering()
    async with serving(echo, balancer=balancer, proxy_protocol=True) as server:
        async with await connect_from("127.0.0.9", server) as client:
            await client.send_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n" + b"x")
            assert await client.receive_some(1) == b"x"
    assert balancer.asked[0][0][0] == "127.0.0.9"


class DeliberateError(Exception):
    pass


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def pick(self, _peer: Any, _consumers: Sequence[ConsumerView]) -> ConsumerView:
        raise self.error


class Answering:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def pick(self, _peer: Any, _consumers: Sequence[ConsumerView]) -> ConsumerView:
        return self.answer  # type: ignore[no-any-return]


async def end_of(balancer: Balancer, **options: Any) -> ExceptionGroup[Exception]:
    """Connect to a server with this balancer, and return the exception that ends the server."""
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(lambda **k: gain_trio.serve(echo, LOCAL, balancer=balancer, **options, **k))
            client = await trio.open_tcp_stream(*server.addresses[0])
            with trio.CancelScope(shield=True):
                async with client:
                    with contextlib.suppress(trio.BrokenResourceError):  # it is told by an end, or by a reset
                        assert await receive_all(client) == b""
    assert isinstance(caught.value, ExceptionGroup)
    return caught.value


@pytest.mark.parametrize("options", [{}, {"workers": 3}, {"max_connections": 5}], ids=str)
@pytest.mark.parametrize(
    "error",
    [DeliberateError("on purpose"), OSError(errno.EMFILE, "not from accept"), trio.ClosedResourceError()],
    ids=repr,
)
def test_a_balancer_that_raises_ends_the_server(
    no_descriptor_leak: None, error: Exception, options: dict[str, Any]
) -> None:
    async def main() -> None:
        group = await end_of(Raising(error), **options)
        assert group.split(type(error))[1] is None

    trio.run(main)


@pytest.mark.parametrize("answer", [None, 0, [], View(0), "consumer"], ids=repr)
def test_a_balancer_that_answers_nonsense_ends_the_server(no_descriptor_leak: None, answer: Any) -> None:
    async def main() -> None:
        group = await end_of(Answering(answer), workers=2)
        errors, rest = group.split(ValueError)
        assert rest is None
        while isinstance(errors, ExceptionGroup):
            [errors] = errors.exceptions
        assert "not among the consumers it was given" in str(errors)

    trio.run(main)


# --- the tree of tasks ---


def named_children(nursery: trio.Nursery) -> dict[str, trio.lowlevel.Task]:
    return {task.name: task for task in nursery.child_tasks}


def walk(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    return [task] + [each for nursery in task.child_nurseries for child in nursery.child_tasks for each in walk(child)]


@pytest.mark.parametrize("architecture", ["reactor", "socket_sharding"])
async def test_acceptors_and_consumers_are_tasks_of_the_servers_nursery(architecture: Any) -> None:
    async def handler(connection: Connection) -> None:
        await connection.receive()

    async with trio.open_nursery() as nursery:
        addresses = [LOCAL, "tcp://127.0.0.2:0"]
        serve = gain_trio.serve
        server = await nursery.start(lambda **k: serve(handler, addresses, workers=2, architecture=architecture, **k))
        root = trio.lowlevel.current_root_task()
        assert root is not None
        holders = [
            each
            for task in walk(root)
            for each in task.child_nurseries
            if "gain_trio consumer 0" in named_children(each)
        ]
        [of_server] = holders
        children = named_children(of_server)
        where = [str(address) for address in server.addresses]
        if architecture == "reactor":
            acceptors = {f"gain_trio acceptor {address}" for address in where}
        else:
            acceptors = {f"gain_trio acceptor {address} shard {shard}" for address in where for shard in range(2)}
        others = {"gain_trio consumer 0", "gain_trio consumer 1", "gain_trio end of drain"}
        assert set(children) == acceptors | others
        async with await connect(server):
            await until(lambda: server.active_connections == 1)
            handlers = [
                task.name
                for number in range(2)
                for inner in children[f"gain_trio consumer {number}"].child_nurseries
                for task in inner.child_tasks
            ]
            assert len(handlers) == 1
            assert "handler" in handlers[0]
        nursery.cancel_scope.cancel()
