"""The hub's status as Prometheus metrics; series and file names never become labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector


class StatusCollector(Collector):
    """Makes metrics of whatever status was heard last."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        status = self.status
        up = GaugeMetricFamily("aet_hub_heard", "1 when the hub has been heard at all")
        up.add_metric([], 1.0 if status else 0.0)
        yield up
        if not status:
            return
        yield InfoMetricFamily("aet_build", "Version", value={"version": str(status.get("version", ""))})
        units = CounterMetricFamily("aet_projections", "Source images by how they ended", labels=["outcome"])
        for outcome, count in status.get("totals", {}).items():
            units.add_metric([outcome], count)
        yield units
        depth = GaugeMetricFamily("aet_queue_depth", "Projections by where they are", labels=["queue"])
        for queue, count in status.get("queue", {}).items():
            depth.add_metric([queue], count)
        yield depth
        latency = GaugeMetricFamily(
            "aet_stage_duration_seconds", "Time spent in a stage, last 1000 projections", labels=["stage", "quantile"]
        )
        for stage, figures in status.get("latency", {}).get("stages", {}).items():
            latency.add_metric([stage, "0.5"], figures.get("p50_s", float("nan")))
            latency.add_metric([stage, "0.99"], figures.get("p99_s", float("nan")))
        yield latency
        age = GaugeMetricFamily("aet_role_age_seconds", "Time since a role was heard", labels=["role"])
        for name, role in status.get("roles", {}).items():
            age.add_metric([name], role.get("age_s", float("nan")))
        yield age
        yield from _single_figures(status)


def _single_figures(status: dict[str, Any]) -> Iterator[Metric]:
    figures = {
        "aet_disk_free_bytes": ("Room left on the output disk", status.get("disk_free_bytes")),
        "aet_paused": ("1 while intake waits for the disk", 1 if status.get("paused") else 0),
        "aet_series_open": ("Open series", sum(series.get("state") == "open" for series in status.get("series", []))),
        "aet_trigger_pending": ("Events that nobody has acted upon yet", status.get("events", {}).get("pending")),
        "aet_trigger_failed": ("Events put aside as failed", status.get("events", {}).get("failed")),
        "aet_refused_messages": ("Messages that broke the rules of the queue", status.get("refused_messages")),
    }
    for name, (text, value) in figures.items():
        if value is not None:
            yield GaugeMetricFamily(name, text, value=float(value))
