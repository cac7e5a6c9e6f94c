"""What a user would pick instead, each in a process of its own and in the environment where it is installed.

A peer is a script that writes a line of JSON when it is ready, then reads a line for each request and answers a line. Its
networks have the model's weights or random ones: weights do not change how long it takes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.line_processes import LineProcess, ScriptEnded, line_process
from benchmarks.timing.asking import Asked, MeasurementError

ROOT = Path(__file__).resolve().parents[3]
REFERENCE_PYTHON = ROOT / ".venv-reference" / "bin" / "python"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer at one of its settings.

    Attributes:
        label: What tables call it.
        needs: The module without which it is not installed.
        real_size_only: Its networks have Stable Diffusion's size, and no other.
    """

    label: str
    needs: str
    module: str
    setting: str
    real_size_only: bool = False


PEERS: Mapping[str, Peer] = {
    "diffusers-float32": Peer(label="diffusers, float32", needs="diffusers", module="run_diffusers", setting="float32"),
    "diffusers-bfloat16": Peer(label="diffusers, bfloat16", needs="diffusers", module="run_diffusers", setting="bfloat16"),
    "diffusers-compiled": Peer(label="diffusers, torch.compile", needs="diffusers", module="run_diffusers", setting="compiled"),
    "diffusers-openvino": Peer(
        label="diffusers' networks on OpenVINO", needs="diffusers", module="run_diffusers", setting="openvino"
    ),
    "keras-cv": Peer(
        label="keras-cv as it comes", needs="keras_cv", module="run_keras_cv", setting="as-it-comes", real_size_only=True
    ),
    "keras-cv-without-xla": Peer(
        label="keras-cv without XLA", needs="keras_cv", module="run_keras_cv", setting="without-xla", real_size_only=True
    ),
    "keras-cv-bfloat16": Peer(
        label="keras-cv, mixed bfloat16", needs="keras_cv", module="run_keras_cv", setting="bfloat16", real_size_only=True
    ),
}


class PeerUnavailable(MeasurementError):
    """It cannot be measured here; the sentence says why."""


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """What a peer is told when it starts.

    Attributes:
        model: The folder of a model as diffusers lays it out.
        sampler: Always DDIM, where the peer has a choice.
    """

    setting: str
    model: str
    threads: int
    width: int
    height: int
    num_images: int
    warm_up_steps: int


class RunningPeer:
    """A peer that is ready.

    Attributes:
        facts: What it said of itself: versions, and how its setting was carried out.
    """

    def __init__(self, name: str, process: LineProcess) -> None:
        self.name, self.ready_seconds, self.facts = name, process.ready_seconds, process.facts
        self.pids = {name: process.pid}
        self._process = process

    def picture(self, asked: Asked) -> dict[str, float]:
        """Seconds by part, and `wall` as it is seen from here. Raises PeerUnavailable."""
        started = time.perf_counter()
        with _as_unavailable():
            answer = self._process.ask(asdict(asked))
        return {**answer, "wall": time.perf_counter() - started}


@contextmanager
def running_peer(name: str, task: PeerTask, *, on_line: Callable[[str, str], None]) -> Iterator[RunningPeer]:
    """Starts a peer, and ends it with the block.

    Raises:
        PeerUnavailable: It is not installed, or ended where it should have answered.
    """
    peer = PEERS[name]
    command = [_python_with(peer), "-m", f"benchmarks.timing.peers.{peer.module}", json.dumps(asdict(task))]
    environment = _environment(task.threads)
    with _as_unavailable(), line_process(name, command, folder=ROOT, environment=environment, on_line=on_line) as process:
        yield RunningPeer(name, process)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except ScriptEnded as error:
        raise PeerUnavailable(str(error)) from None


def _python_with(peer: Peer) -> str:
    """An interpreter that has what the peer needs."""
    if importlib.util.find_spec(peer.needs) is not None:
        return sys.executable
    if REFERENCE_PYTHON.exists():
        return str(REFERENCE_PYTHON)
    raise PeerUnavailable(f"{peer.needs} is not installed here: `make {REFERENCE_PYTHON.parents[1].name}/.installed` brings it")


def _environment(threads: int) -> dict[str, str]:
    number = str(threads)
    return {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": number,
        "TF_NUM_INTRAOP_THREADS": number,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
