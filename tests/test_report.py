"""The page that ``benchmarks/run.py --report`` makes of its results."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.one_backend


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("_report", ROOT / "benchmarks" / "_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("figures", None)


def latencies(factor: float) -> list[list[float]]:
    shares = [0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999]
    return [[share, factor * (number + 1)] for number, share in enumerate(shares)]


def record() -> dict[str, Any]:
    """Two rounds of two servers, and one that has failed."""
    echo = {
        "mode": "echo",
        "connections": 64,
        "size": 64,
        "depth": 1,
        "ratio_to_c": {
            "c": {"middle": 1.0, "low": 1.0, "high": 1.0},
            "gain_trio": {"middle": 1.1, "low": 1.0, "high": 1.2},
            "trio": {"middle": 4.0, "low": 3.9, "high": 4.5},
        },
        "results": {
            "gain_trio": [{"latency_us": latencies(10)}, {"latency_us": latencies(12)}],
            "trio": [{"latency_us": latencies(40)}, {"error": "it ended"}],
            "broken": [{"error": "it ended"}, {"error": "it ended"}],
        },
    }
    memory = {
        "mode": "memory",
        "connections": 100,
        "results": {
            "gain_trio": [{"per_connection_kib": 4.0}, {"per_connection_kib": 5.0}],
            "trio": [{"per_connection_kib": 9.0}, {"per_connection_kib": 9.0}],
            "broken": [{"error": "it ended"}, {"error": "it ended"}],
        },
    }
    return {
        "date": "2026-11-30",
        "machine": "a machine <with two CPUs>",
        "command": "python benchmarks/run.py --report build/report",
        "skipped": [],
        "seconds": 3.0,
        "runs": [echo, memory],
    }


def words_of(path: Path) -> list[str]:
    """The texts of an SVG."""
    return ["".join(element.itertext()) for element in ET.parse(path).iter() if element.tag.endswith("}text")]


def test_the_page_has_a_plot_of_each_kind(report: Any, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    report.write(folder, record())
    page = (folder / "index.html").read_text()
    plots = sorted(path.name for path in folder.glob("*.svg"))
    assert plots == ["latency-64-64-1.svg", "memory.svg", "ratio-64-64-1.svg"]
    assert all(f'src="{name}"' in page for name in plots)
    assert "a machine &lt;with two CPUs&gt;" in page
    assert "2026-11-30" in page
    assert json.loads((folder / "results.json").read_text()) == record()
    for name in plots:
        words = words_of(folder / name)
        assert {"gain_trio, tasks", "Trio, streams"} <= set(words)
        assert "broken" not in words


def test_a_latency_is_the_median_over_the_rounds(report: Any, tmp_path: Path) -> None:
    report.write(tmp_path / "report", record())
    words = words_of(tmp_path / "report" / "latency-64-64-1.svg")
    assert "44 / 88 / 99" in words  # of 40 and 48, 80 and 96, 90 and 108
    assert "160 / 320 / 360" in words  # of the only round that was measured


def test_the_spread_of_memory_is_drawn(report: Any, tmp_path: Path) -> None:
    report.write(tmp_path / "report", record())
    assert {"4.50", "9.00"} <= set(words_of(tmp_path / "report" / "memory.svg"))


def test_a_run_without_results_has_no_plot(report: Any, tmp_path: Path) -> None:
    one = record()
    for run in one["runs"]:
        run["results"] = {"broken": [{"error": "it ended"}]}
        run["ratio_to_c"] = {}
    report.write(tmp_path / "report", one)
    assert not list((tmp_path / "report").glob("*.svg"))
