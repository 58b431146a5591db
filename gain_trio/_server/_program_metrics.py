"""The program's own metrics: what it has registered with prometheus_client, over all processes of a server.

Each process has a registry of its own, ``prometheus_client.REGISTRY``, so the counts of one thing are in several places.
The server asks for them at each scrape, and puts them together:

===========================  ======================================================================================
counter, histogram, summary  the sum over all processes, those that are gone included: it never decreases
gauge                        as its ``multiprocess_mode`` says: the sum, the smallest or the largest of the processes
                             that there are; otherwise each has a label ``worker``
info                         one sample for all processes that say the same
anything else                each process's, with a label ``worker``
===========================  ======================================================================================

``worker`` is the number of a worker process, which its successor has, too, or ``server``.  A label of the program's of that
name becomes ``exported_worker``, as Prometheus does it.  A server without worker processes has one registry, and its metrics
stay as they are.

A registry is read in a thread, as prometheus_client's own endpoint does it, because the collectors are the program's.  None
of them can hold up or end a server: one that fails is logged, what takes too long is left for the next scrape, and what is
too much is left out.  ``gain_trio_program_metrics_incomplete`` counts the processes that this concerns.
"""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import attrs
import trio

from gain_trio._transports import shown

from ._log_throttle import log_throttle, since_last

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

MOST_SAMPLES: Final = 20_000
"""Samples of one process.  A process reports them in one message, which the server decodes between two connections."""
MOST_BYTES: Final = 2 << 20
"""Bytes of those samples, about."""
MOST_IN_ALL: Final = 5 * MOST_SAMPLES
"""Samples of all processes together."""
SAMPLE_BYTES: Final = 32
"""Bytes of a sample beside the text in it."""
LABEL_BYTES: Final = 16
"""Bytes of a label beside the text in it."""
FAMILY_BYTES: Final = 64
"""Bytes of a metric beside its samples, its name and its text."""
SUMMED: Final = frozenset({"counter", "histogram", "summary"})
"""Types of metrics that only grow."""
_BY_MODE: Final[dict[str, Callable[[float, float], float]]] = {"sum": operator.add, "min": min, "max": max}
SERVER: Final = "server"
"""The label of the server's own process."""

logger = logging.getLogger("gain_trio")


class Sample(NamedTuple):
    """One number."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(NamedTuple):
    """All samples of one metric.  Its ``kind`` is Prometheus's type, its ``mode`` the ``multiprocess_mode`` of a gauge."""

    name: str
    text: str
    kind: str
    unit: str
    mode: str
    samples: tuple[Sample, ...]

    def metric(self) -> Metric:
        """The same as prometheus_client has it."""
        from prometheus_client.metrics_core import Metric  # noqa: PLC0415 - an extra, which the endpoint has imported

        metric = Metric(self.name, self.text, self.kind, self.unit)
        for sample in self.samples:
            metric.add_sample(sample.name, dict(sample.labels), sample.value)
        return metric


@final
@attrs.frozen
class ProgramMetrics:
    """The program's metrics in one process, to be sent to another one."""

    families: tuple[Family, ...] = ()
    is_complete: bool = True
    """Whether nothing was left out."""


# --- in one process ---

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("gain_trio metrics thread")


def metrics_thread() -> trio.CapacityLimiter:
    """The limiter of the one thread that reads and encodes metrics: a collector that does not return occupies no second."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(1)
        _limiter.set(limiter)
        return limiter


async def registered_metrics() -> tuple[list[Metric], bool]:
    """The metrics of this process's registry, and whether nothing was left out.

    None, if nothing in this process has imported prometheus_client.  Cancelling it leaves the thread to itself.
    """
    metrics, is_complete, error = await _in_thread(_read_registry)
    _report(error)
    return metrics, is_complete


async def reported_metrics() -> ProgramMetrics:
    """The same as a message."""
    families, is_complete, error = await _in_thread(_read_families)
    _report(error)
    return ProgramMetrics(tuple(families), is_complete)


async def _in_thread(function: Callable[[], tuple[Any, bool, Exception | None]]) -> tuple[Any, bool, Exception | None]:
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=metrics_thread())


def _report(error: Exception | None) -> None:
    count = None if error is None else log_throttle("program metrics").count()
    if count is not None:
        text = "metrics of the program are left out, because a collector of its registry failed: %s%s"
        logger.error(text, shown(error), shown(since_last(count)), exc_info=error)


def _registry() -> Any:
    # The module and not the package, which is in sys.modules before it is complete.
    return getattr(sys.modules.get("prometheus_client.registry"), "REGISTRY", None)


def _read_registry() -> tuple[list[Metric], bool, Exception | None]:
    """What fits, and the exception that ended the reading."""
    found: list[Metric] = []
    registry = _registry()
    if registry is None:
        return found, True, None
    samples, size, is_complete = 0, 0, True
    try:
        for metric in registry.collect():
            own_samples = len(metric.samples)
            own_size = FAMILY_BYTES + _encoded_size(metric.name + metric.documentation + metric.unit)
            own_size += sum(map(_size, metric.samples))
            if samples + own_samples > MOST_SAMPLES or size + own_size > MOST_BYTES:
                is_complete = False
                continue
            samples += own_samples
            size += own_size
            found.append(metric)
    except Exception as error:  # noqa: BLE001 - whatever a collector of the program's raises
        return found, False, error
    return found, is_complete, None


def _size(sample: Any) -> int:
    labels: Iterable[tuple[str, str]] = sample.labels.items()
    size = SAMPLE_BYTES + _encoded_size(sample.name)
    return size + sum(LABEL_BYTES + _encoded_size(name) + _encoded_size(value) for name, value in labels)


def _encoded_size(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


def _read_families() -> tuple[list[Family], bool, Exception | None]:
    metrics, is_complete, error = _read_registry()
    try:
        return list(map(_family, metrics)), is_complete, error
    except Exception as other:  # noqa: BLE001 - a collector may make samples of anything
        return [], False, error or other


def _family(metric: Metric) -> Family:
    samples = (
        Sample(str(sample.name), tuple((str(name), str(value)) for name, value in sample.labels.items()), float(value))
        for sample in metric.samples
        for value in [sample.value]
    )
    mode = ""
    if metric.type == "gauge":
        # A family does not say what its gauge was made with, and no public name of prometheus_client does.
        collector = _registry()._names_to_collectors.get(metric.name)
        mode = str(getattr(collector, "_multiprocess_mode", "all")).removeprefix("live")
    return Family(metric.name, metric.documentation, metric.type, metric.unit, mode, tuple(samples))


# --- of all processes ---


@final
class MergedMetrics:
    """The metrics of several processes as those of one."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}  # without samples
        self._samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        self._count = 0
        self.is_complete = True
        """Whether nothing was left out here."""

    def add(self, metrics: ProgramMetrics, worker: str | None) -> None:
        """Add those of a process: ``worker`` is its label, None for a process that is gone, whose gauges are gone, too."""
        for family in metrics.families:
            if worker is None and family.kind not in SUMMED:
                continue
            known = self._families.setdefault(family.name, family._replace(samples=()))
            if known.kind != family.kind or self._count + len(family.samples) > MOST_IN_ALL:
                self.is_complete = False
                continue
            self._add_samples(family, worker)

    def _add_samples(self, family: Family, worker: str | None) -> None:
        into = self._samples.setdefault(family.name, {})
        before = len(into)
        for sample in family.samples:
            merge = _merging(family, sample)
            key = (sample.name, sample.labels)
            if merge is None:
                if worker is not None:
                    into[sample.name, (*map(_exported, sample.labels), ("worker", worker))] = sample.value
            elif key in into:
                into[key] = merge(into[key], sample.value)
            else:
                into[key] = sample.value
        self._count += len(into) - before

    def result(self) -> ProgramMetrics:
        """All that was added."""
        families = (
            family._replace(samples=tuple(Sample(*key, value) for key, value in self._samples[name].items()))
            for name, family in self._families.items()
            if self._samples.get(name)
        )
        return ProgramMetrics(tuple(families), self.is_complete)


def _merging(family: Family, sample: Sample) -> Callable[[float, float], float] | None:
    """How two processes' values become one; None if they stay two."""
    if family.kind in SUMMED:
        if any(name == "quantile" for name, _value in sample.labels):
            return None
        return min if sample.name.endswith("_created") else operator.add
    return max if family.kind == "info" else _BY_MODE.get(family.mode)


def _exported(label: tuple[str, str]) -> tuple[str, str]:
    return ("exported_worker", label[1]) if label[0] == "worker" else label


@final
@attrs.frozen
class GatheredMetrics:
    """The program's metrics in all processes, before they are put together."""

    metrics: list[Metric] = attrs.Factory(list)
    """Those of a server without worker processes."""
    parts: tuple[tuple[str | None, ProgramMetrics], ...] = ()
    """Those of one with worker processes, each with its label: first those that are gone, last those that serve."""
    incomplete: int = 0
    """Processes whose metrics are missing, old, or not complete."""

    def together(self) -> tuple[list[Metric], int]:
        """The metrics, and the processes whose are not complete.  For a thread: there may be many."""
        if not self.parts:
            return self.metrics, self.incomplete
        merged = MergedMetrics()
        for worker, part in self.parts:
            merged.add(part, worker)
        incomplete = self.incomplete if merged.is_complete else max(self.incomplete, 1)
        return [family.metric() for family in merged.result().families], incomplete
