"""What single calls of Trio cost: with its own code, and with gain_trio's pieces in C, turn about in one process.

    python benchmarks/calls.py [--rounds 9] [--calls checkpoint,scope]

Prints microseconds of CPU a call: the median of the rounds, and the ratio of the medians with the smallest and the largest
ratio of one round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

import gain_trio

Case = Callable[[], Awaitable[int]]
"""Makes a number of calls, and returns how many."""

MANY = 2000


async def checkpoint() -> int:
    for _ in range(MANY):
        await trio.lowlevel.checkpoint()
    return MANY


async def checkpoints_of_100_tasks() -> int:
    async def task() -> None:
        for _ in range(MANY // 50):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(task)
    return MANY // 50 * 100


async def scope() -> int:
    for _ in range(MANY):
        with trio.CancelScope():  # noqa: ASYNC100  # what it costs by itself
            pass
    return MANY


async def move_on_after() -> int:
    for _ in range(MANY):
        with trio.move_on_after(10):  # noqa: ASYNC100  # the same
            pass
    return MANY


async def fail_after() -> int:
    for _ in range(MANY):
        with trio.fail_after(10):  # noqa: ASYNC100  # the same
            pass
    return MANY


async def sleep() -> int:
    for _ in range(MANY // 4):
        await trio.sleep(1e-9)
    return MANY // 4


async def generator() -> int:
    async def one() -> AsyncGenerator[int, None]:
        yield 1

    for _ in range(MANY):
        async for _ in one():
            pass
    return MANY


async def spawn() -> int:
    async def nothing() -> None:
        pass

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for _ in range(MANY // 20):
                nursery.start_soon(nothing)
    return MANY


async def nursery() -> int:
    for _ in range(MANY // 4):
        async with trio.open_nursery():
            pass
    return MANY // 4


async def channel() -> int:
    send, receive = trio.open_memory_channel[int](16)
    for number in range(MANY):
        await send.send(number)
        await receive.receive()
    return MANY


async def hand_over() -> int:
    send, receive = trio.open_memory_channel[int](0)

    async def produce() -> None:
        async with send:
            for number in range(MANY):
                await send.send(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for _ in receive:
            pass
    return MANY


async def lock() -> int:
    lock = trio.Lock()
    for _ in range(MANY):
        async with lock:
            pass
    return MANY


async def lock_of_two_tasks() -> int:
    lock = trio.Lock()

    async def task() -> None:
        for _ in range(MANY // 2):
            async with lock:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        nursery.start_soon(task)
    return MANY


async def event() -> int:
    for _ in range(MANY):
        event = trio.Event()
        event.set()
        await event.wait()
    return MANY


async def event_of_two_tasks() -> int:
    events = [trio.Event() for _ in range(MANY)]

    async def set_them() -> None:
        for event in events:
            event.set()
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(set_them)
        for event in events:
            await event.wait()
    return MANY


async def stream() -> int:
    one, other = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with one, other:
        for _ in range(MANY // 4):
            await one.send_all(b"x" * 64)
            await other.receive_some()
    return MANY // 4


async def is_readable() -> int:
    one, other = trio.socket.socketpair()
    with one, other:
        for _ in range(MANY):
            one.is_readable()
    return MANY


async def datagram() -> int:
    one, other = (trio.socket.socket(type=trio.socket.SOCK_DGRAM) for _ in range(2))
    with one, other:
        await one.bind(("127.0.0.1", 0))
        await other.bind(("127.0.0.1", 0))
        address = other.getsockname()
        for _ in range(MANY // 4):
            await one.sendto(b"x" * 64, address)
            await other.recvfrom(2048)
    return MANY // 4


CASES: dict[str, Case] = {
    "checkpoint": checkpoint,
    "checkpoint, 100 tasks": checkpoints_of_100_tasks,
    "with CancelScope()": scope,
    "with move_on_after()": move_on_after,
    "with fail_after()": fail_after,
    "sleep()": sleep,
    "async generator": generator,
    "start_soon, to its end": spawn,
    "open_nursery()": nursery,
    "channel: send, receive": channel,
    "channel(0), two tasks": hand_over,
    "async with Lock()": lock,
    "Lock(), two tasks": lock_of_two_tasks,
    "Event: set, wait": event,
    "Event, two tasks": event_of_two_tasks,
    "send_all, receive_some": stream,
    "sendto, recvfrom": datagram,
    "is_readable": is_readable,
}


async def timed(case: Case) -> float:
    """Microseconds of CPU a call."""
    begun = time.process_time()
    count = await case()
    return (time.process_time() - begun) / count * 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", default=",".join(CASES), help="parts of their names, with commas between them")
    options = parser.parse_args()
    wanted = {name: case for name, case in CASES.items() if any(part in name for part in options.calls.split(","))}
    ring = gain_trio.backend_info().backend == "io_uring"
    ways = {
        "trio": ("trio", False),
        "in C": ("trio", True),
        **({"in C, on the ring": ("io_uring", True)} if ring else {}),
    }
    print(f"{'microseconds of CPU':24}" + "".join(f"{way:>26}" for way in ways))
    for name, case in wanted.items():
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (backend, accelerate) in ways.items():
                found[way].append(gain_trio.run(timed, case, backend=backend, accelerate=accelerate))  # type: ignore[arg-type]
        line = f"{name:24}{statistics.median(found['trio']):26.2f}"
        for way in list(ways)[1:]:
            ratios = [one / other for one, other in zip(found["trio"], found[way], strict=True)]
            ratio = statistics.median(found["trio"]) / statistics.median(found[way])
            shown = f"{statistics.median(found[way]):.2f} ({ratio:.1f}, {min(ratios):.1f} to {max(ratios):.1f})"
            line += f"{shown:>26}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
