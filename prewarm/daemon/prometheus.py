"""Metrics in Prometheus' text format, and the file that a textfile collector reads."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from prewarm.core.atomic_write import replace_file
from prewarm.core.errors import PrewarmError
from prewarm.reports.metrics import METRICS, Sample

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Collected(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = tuple(samples)

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=metric.labels)
            for sample in self._samples:
                if sample.metric is metric:
                    family.add_metric(sample.labels, sample.value)
            if family.samples:
                yield family


def text_of(samples: Iterable[Sample]) -> bytes:
    """Return the samples in the text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Collected(samples))
    return generate_latest(registry)


def write(path: Path, text: bytes) -> None:
    """Replace the file as a whole: who reads it sees the old text or the new one, never a part.

    Everybody may read it, as node_exporter is another user. PrewarmError where its folder is
    missing or cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no file")  # root could replace /dev/null
        # The collector reads *.prom alone, so what a killed run leaves is not read.
        replace_file(path, text, 0o644)
    except OSError as error:
        raise PrewarmError(
            "metrics",
            f"metrics {path} cannot be written: {error.strerror}",
            f"make {path.parent} and let prewarm's user write there (in a unit: ReadWritePaths=), "
            "or correct metrics: in images.yml",
        ) from error
