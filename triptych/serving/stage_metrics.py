"""What stages of this process count of themselves."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from triptych.contract import Decoder, Diffusion, ImageEncoder, TextEncoder
from triptych.serving.served_models import served_model


class StageMetrics(Collector):
    """Read when they are asked for."""

    def __init__(self, *stages: TextEncoder | Diffusion | Decoder | ImageEncoder) -> None:
        self._stages = {served_model(stage).name: stage for stage in stages}

    def collect(self) -> Iterable[Metric]:
        repeated = CounterMetricFamily(
            "triptych_float32_rows",
            "Rows that were NaN or infinite in half precision, and were computed again in float32.",
            labels=("stage",),
        )
        for name, stage in self._stages.items():
            if (rows := getattr(stage, "float32_rows", None)) is not None:
                repeated.add_metric((name,), rows)
        yield repeated
