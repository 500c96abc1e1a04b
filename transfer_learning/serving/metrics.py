"""Counts for Prometheus; no image, name of a file or address of a client is among them."""

from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from transfer_learning.serving.batching import BATCH_SIZES
from transfer_learning.serving.drift import Drift

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics of one server."""

    def __init__(self, class_names: Sequence[str], drift: Drift | None):
        self._registry = CollectorRegistry()
        # A label must be UTF-8, a class name need not be.
        self._class_names = [name.encode(errors="replace").decode() for name in class_names]
        self._requests = Counter("http_requests", "Answered requests.", ["path", "status"], **self._shared())
        self._seconds = Histogram(
            "http_request_seconds", "From the request to its answer.", ["path"], buckets=SECONDS, **self._shared()
        )
        self._predicted = Counter("predicted_images", "Images by predicted class.", ["class"], **self._shared())
        self._rejected = Counter("rejected_images", "Images below the rejection threshold.", **self._shared())
        self._undecodable = Counter("undecodable_images", "Images that could not be decoded.", **self._shared())
        self.batch_size = Histogram("batch_size", "Images per batch.", buckets=BATCH_SIZES, **self._shared())
        self.images_in_work = Gauge(
            "images_in_work", "Images that are decoded, waiting or predicted.", **self._shared()
        )
        if drift is not None:
            self._registry.register(_DriftCollector(drift))

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request; status 0 for a client that has left."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_images(self, rows: Sequence[np.ndarray], num_undecodable: int, rejection_threshold: float) -> None:
        """Counts predicted images, float32 (classes,) each."""
        for row in rows:
            self._predicted.labels(self._class_names[row.argmax()]).inc()
            if row.max() < rejection_threshold:
                self._rejected.inc()
        self._undecodable.inc(num_undecodable)

    def text(self) -> tuple[bytes, int, None, str]:
        """Returns content, status, headers and media type of the answer to ``/metrics``."""
        return generate_latest(self._registry), 200, None, CONTENT_TYPE_PLAIN_0_0_4

    def _shared(self) -> dict:
        return {"registry": self._registry, "namespace": "tl"}


class _DriftCollector(Collector):
    def __init__(self, drift: Drift):
        self._drift = drift

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields what is known of the drift by now."""
        for name, text in (
            ("images", "Recent images, of which older ones count less."),
            ("stability_index", "Population stability index of recent against validation images."),
            ("limit", "What the index exceeds by chance once in a thousand times."),
        ):
            family = GaugeMetricFamily(f"tl_drift_{name}", text, labels=["of"])
            for kind, summary in self._drift.summary().items():
                if summary[name] is not None:
                    family.add_metric([kind], summary[name])
            yield family
