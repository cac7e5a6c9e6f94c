"""One network on one framework, or what is needed before: `python -m benchmarks.gpu.contender TASK`.

It is ready when it has run once; then it runs as often as a line asks it to, and says how long each time took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.workloads import PRODUCTS, Arrays, Case, inputs_of, write_weights
from benchmarks.line_processes import Lines
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.engines.distributions import installed_version


class Missing(Exception):
    """This framework cannot run here."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What can be asked of it.

    Attributes:
        device: As its framework calls it.
        network: Runs from arrays to arrays, as a stage does.
        product: Multiplies PRODUCTS times two large matrices of the case's precision.
    """

    device: str
    versions: Mapping[str, str | None]
    network: Callable[[], Arrays]
    product: Callable[[], object]


def on_jax(case: Case, task: Mapping[str, Any]) -> Contender:
    """Our network on our engine."""
    import jax
    import jax.numpy as jnp

    from triptych.engines import NetworkSource, Precision, RowSpec, get_engine

    inputs = inputs_of(case)
    engine = get_engine("jax")
    compiled = engine.compile(
        NetworkSource(
            name=case.network,
            build=partial(load_network, DiffusersFolder(Path(task["checkpoint"])), case.network),
            key={"benchmark": case.name},
        ),
        {name: RowSpec(shape=array.shape[1:], dtype=array.dtype.name) for name, array in inputs.items()},
        batch_sizes=[case.batch],
        precision=Precision(case.precision),
        cache_folder=Path(task["cache"]),
    )
    shape = (case.matrix_side, case.matrix_side)
    left, right = (jax.random.normal(jax.random.key(place), shape, case.precision) for place in range(2))
    multiply = jax.jit(jnp.matmul)

    def product() -> None:
        for _ in range(PRODUCTS):  # no more than the last is held: other contenders need the memory
            last = multiply(left, right)
        last.block_until_ready()

    return Contender(
        device=engine.device,
        versions=_versions("keras", "jax", "jaxlib", "jax-cuda12-plugin", "nvidia-cudnn-cu12", "nvidia-cublas-cu12"),
        network=partial(compiled, inputs),
        product=product,
    )


def on_torch(case: Case, task: Mapping[str, Any]) -> Contender:
    """Diffusers' network, compiled by torch, channels last."""
    try:
        import torch

        from benchmarks.diffusers_networks import call_peer, load_peer
    except ModuleNotFoundError as error:
        raise Missing(f"{error.name} is not installed") from error
    if not case.tiny and not torch.cuda.is_available():
        raise Missing("torch sees no GPU")
    device, kind = torch.device("cpu" if case.tiny else "cuda"), getattr(torch, case.precision)
    torch.backends.cudnn.benchmark = True
    module = load_peer(case.network, Path(task["checkpoint"]), kind).to(device, memory_format=torch.channels_last)
    method = "decode" if case.network is Network.VAE_DECODER else "forward"
    setattr(module, method, torch.compile(getattr(module, method), mode=task["torch_mode"]))
    inputs = inputs_of(case)

    def network() -> Arrays:
        tensors = {name: torch.from_numpy(array).to(device, kind) for name, array in inputs.items()}
        with torch.inference_mode():
            return {name: each.float().cpu().numpy() for name, each in call_peer(case.network, module, tensors).items()}

    left, right = (torch.randn(case.matrix_side, case.matrix_side, dtype=kind, device=device) for _ in range(2))

    def product() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return Contender(
        device="cpu" if case.tiny else torch.cuda.get_device_name(),
        versions=_versions("torch", "diffusers", "transformers") | {"cuda": torch.version.cuda},
        network=network,
        product=product,
    )


def _versions(*distributions: str) -> dict[str, str | None]:
    return {name: installed_version(name) for name in distributions}


def serve(contender: Contender, lines: Lines, outputs: str) -> None:
    """Writes the outputs of the first run to a file, and answers until there are no more lines."""
    np.savez(outputs, allow_pickle=False, **contender.network())
    contender.product()
    lines.say({"device": contender.device, "versions": contender.versions})

    def timed(request: Mapping[str, Any]) -> dict[str, list[float]]:
        """The first run of a turn does not count: another process had the device before."""
        run = {"network": contender.network, "product": contender.product}[request["run"]]
        run()
        return {"seconds": [_seconds(run) for _ in range(request["times"])]}

    lines.answer(timed)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """The task's framework is `jax` or `torch`; `weights` writes the checkpoint that both read."""
    lines = Lines()
    task = json.loads(sys.argv[1])
    case = Case(**{**task["case"], "network": Network(task["case"]["network"])})
    try:
        match task["framework"]:
            case "weights":
                lines.say({"operations_of_row": write_weights(case, Path(task["checkpoint"]))})
            case "jax":
                serve(on_jax(case, task), lines, task["outputs"])
            case "torch":
                serve(on_torch(case, task), lines, task["outputs"])
    except Missing as error:
        lines.say({"missing": str(error)})


if __name__ == "__main__":
    main()
