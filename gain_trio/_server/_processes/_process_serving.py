"""serve(..., processes=N): from the options to a pool of worker processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import trio

from gain_trio._server._consumer import Handler
from gain_trio._server._privileges import identity_of, socket_options_of
from gain_trio._server._server import Server
from gain_trio._server._server_config import ServerConfig
from gain_trio._transports import close_sockets, open_sockets

from ._placement import available_cpus, check_placement, prefer_cpu
from ._process_server import ProcessServer
from ._recycling import check_memory_is_known
from ._worker import main as worker_main
from ._worker_launcher import WorkerLauncher
from ._worker_pool import WorkerPool

logger = logging.getLogger("gain_trio")


async def serve_processes(
    handler: Handler,
    addresses: Sequence[str],
    config: ServerConfig,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Serve in worker processes until cancelled or drained.  They are gone when this ends, however it does.

    Raises:
      ValueError: something cannot be sent to another process, or this system lacks what an option asks for.
      OSError: see :func:`open_listeners`.
      WorkerFailed: they could not begin, or with ``strict`` one of them has failed.
    """
    cpus = available_cpus()
    count = len(cpus) if config.processes == "auto" else config.processes
    assert count is not None
    is_sharded = config.architecture == "socket_sharding"
    check_placement(config)
    if is_sharded and config.max_connections is not None and config.max_connections < count:
        raise ValueError(
            f"max_connections={config.max_connections} cannot be divided among {count} processes with socket sharding: "
            "each needs one at least; use architecture='reactor', which counts in one place"
        )
    if config.max_worker_memory is not None:
        check_memory_is_known()
    identity = None if config.user is None else identity_of(config.user)
    launch = WorkerLauncher(handler, _for_workers(config), worker_main)
    shards = count * config.workers if is_sharded else None
    options = socket_options_of(config, identity)
    groups = await open_sockets(addresses, options, shards=shards, by_cpu=config.cbpf)
    try:
        own_cpus = [cpus[index % len(cpus)] for index in range(count)] if config.cpu_affinity else []
        if is_sharded:
            for index, cpu in enumerate(own_cpus):
                for group in groups[index * config.workers : (index + 1) * config.workers]:
                    prefer_cpu(group, cpu)
        if identity is not None:
            identity.take()
        pool = WorkerPool(launch, config, groups, count, own_cpus)
        listening = (sock.getsockname() for group in groups for sock in group)
        server = ProcessServer(pool, tuple(dict.fromkeys(listening)))
        await pool.run(lambda: task_status.started(server))
    finally:
        close_sockets(groups)


def _for_workers(config: ServerConfig) -> ServerConfig:
    """What concerns them.  The balancer stays here, and need not be one that can be pickled."""
    return attrs.evolve(
        config,
        balancer="round_robin",
        processes=None,
        signals=False,
        sd_notify=False,
        metrics=None,
        max_connections=None,
        at_max_connections="wait",
        user=None,
    )
