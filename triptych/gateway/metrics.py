"""What a gateway counts besides its requests: stages, pictures, and who waits."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from triptych.gateway.admission import Admission
from triptych.pipeline import Generated
from triptych.serving.metrics import SECONDS_BUCKETS


class GatewayMetrics:
    """Counts into the app's registry. Model names come from the topology, so no caller can invent labels."""

    def __init__(self, registry: CollectorRegistry, admission: Admission) -> None:
        self._images = Counter("triptych_images", "Pictures made.", ("model",), registry=registry)
        self._previews = Counter("triptych_previews", "Previews made, or dropped.", ("model", "outcome"), registry=registry)
        self._stage_seconds = Histogram(
            "triptych_stage_seconds",
            "How long a request waited for a stage.",
            ("model", "stage"),
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        running = Gauge(
            "triptych_generations_running", "Requests at work, or waiting for a stage that is gone.", registry=registry
        )
        running.set_function(lambda: admission.running)
        waiting = Gauge("triptych_generations_waiting", "Requests that wait for their turn.", registry=registry)
        waiting.set_function(lambda: admission.waiting)

    def count_preview(self, model: str, made: bool) -> None:
        self._previews.labels(model, "made" if made else "dropped").inc()

    def count(self, generated: Generated, model: str) -> None:
        self._images.labels(model).inc(len(generated.seeds))
        for stage, seconds in generated.seconds.items():
            self._stage_seconds.labels(model, stage).observe(seconds)
