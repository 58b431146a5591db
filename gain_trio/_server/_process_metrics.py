"""The standard ``process_*`` metrics, over all processes of a server.

prometheus_client reads them from /proc, for one process; here they are added up.  The CPU time of a worker process that has
ended is the server's children's (times(2)) from the moment in which the server has fetched its exit
status, so the counter never falls when a process is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_CPU = "process_cpu_seconds"
_START = "process_start_time_seconds"


@final
class ProcessMetrics:
    """A collector.

    Args:
      processes: returns the process ids, the server's own first.
    """

    def __init__(self, processes: Callable[[], Sequence[int]]) -> None:
        self._processes = processes
        self._process = 0
        self._collector = ProcessCollector(pid=lambda: self._process, registry=None)

    def describe(self) -> list[Metric]:
        """None beforehand: prometheus_client asks for the sake of names that two collectors have."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What there is now; nothing on a system without /proc."""
        texts: dict[str, str] = {}
        sums: dict[str, float] = {}
        for process in self._processes():
            self._process = process
            for metric in self._collector.collect():  # none of a process that ends meanwhile
                texts[metric.name] = metric.documentation
                value = metric.samples[0].value
                sums[metric.name] = sums.get(metric.name, 0.0) + (value if metric.name != _START else 0.0)
                if metric.name == _START and not sums[_START]:
                    sums[_START] = value
        if _CPU in sums:
            times = os.times()
            ended = times.children_user + times.children_system
            yield CounterMetricFamily(_CPU, texts[_CPU], sums.pop(_CPU) + ended)
        for name, value in sums.items():
            yield GaugeMetricFamily(name, texts[name], value)
