"""What was heard last as Prometheus metrics, base units; series and file names never become labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from aet_stream.monitor import words
from aet_stream.status import Status

_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The registry behind /metrics."""

    def __init__(self, status: Callable[[], Status], viewers: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Status(status, viewers))
        self._latency = Histogram(
            "aet_projection_latency_seconds",
            "From the source file's last change to a readable row, since this monitor started",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "aet_stage_seconds", "Time in a stage, since this monitor started", ["stage"], buckets=_BUCKETS, registry=self.registry
        )

    def stored(self, stages: dict[str, float]) -> None:
        """A projection was stored; times in seconds by stage."""
        for stage, seconds in stages.items():
            if stage == "total":
                self._latency.observe(seconds)
            elif stage != "done_at":
                self._stages.labels(stage).observe(seconds)


class _Status(Collector):
    """Makes metrics of whatever status was heard last."""

    def __init__(self, status: Callable[[], Status], viewers: Callable[[], int]) -> None:
        self._status = status
        self._viewers = viewers

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("aet_hub_heard", "1 when the hub has been heard at all", value=1.0 if status.hub_id else 0.0)
        yield GaugeMetricFamily("aet_monitor_viewers", "Open pages", value=float(self._viewers()))
        if not status.hub_id:
            return
        yield InfoMetricFamily("aet_build", "Version", value={"version": status.version})
        totals = msgspec.structs.asdict(status.totals)
        aside = {state: totals.pop(state) for state in ("held", "quarantined", "odd")}  # until somebody releases them
        yield _labelled(CounterMetricFamily, "aet_projections", "Source images by how they ended", ["outcome"], totals)
        yield _labelled(GaugeMetricFamily, "aet_put_aside", "Source images that wait for a person", ["state"], aside)
        yield _labelled(
            GaugeMetricFamily, "aet_queue_depth", "Projections by where they are", ["queue"], msgspec.structs.asdict(status.queue)
        )
        latency = GaugeMetricFamily(
            "aet_stage_duration_seconds", "Time spent in a stage, last 1000 projections", labels=["stage", "quantile"]
        )
        for stage, times in status.latency.stages.items():
            latency.add_metric([stage, "0.5"], times.p50_s)
            latency.add_metric([stage, "0.99"], times.p99_s)
        yield latency
        ages = {name: role.age_s for name, role in status.roles.items()}
        yield _labelled(GaugeMetricFamily, "aet_role_age_seconds", "Time since a role was heard", ["role"], ages)
        restarts = {name: child.restarts for name, child in status.children.items()}
        yield _labelled(CounterMetricFamily, "aet_role_restarts", "Times a role was started again", ["role"], restarts)
        yield from _single_figures(status)


def _labelled(kind: Any, name: str, text: str, labels: list[str], values: Mapping[str, float]) -> Metric:
    family: Metric = kind(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric([label], value)  # type: ignore[attr-defined]
    return family


def _single_figures(status: Status) -> Iterator[Metric]:
    current = words.current(status)
    figures = {
        "aet_disk_free_bytes": ("Room left on the output disk", status.disk_free_bytes),
        "aet_paused": ("1 while intake waits for the disk", 1 if status.paused else 0),
        "aet_series_open": ("Open series", sum(series.state == "open" for series in status.series)),
        "aet_last_projection_timestamp_seconds": ("When the last projection was stored", current.last_at if current else None),
        "aet_trigger_pending": ("Events that nobody has acted upon yet", status.events.pending),
        "aet_trigger_failed": ("Events put aside as failed", status.events.failed),
        "aet_refused_messages": ("Messages that broke the rules of the queue", status.refused_messages),
    }
    for name, (text, value) in figures.items():
        if value is not None:
            yield GaugeMetricFamily(name, text, value=float(value))
