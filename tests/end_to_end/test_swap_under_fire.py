"""vignette is swapped for vignette-inpainting and back while sixteen clients post: nobody notices but by the pictures.

Afterwards stages are swapped in that do not fit, are not ready, or die when they are tried: refused, and again nobody notices.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.end_to_end.dying_diffusion import identity_at
from tests.end_to_end.real_services import TinyModel, running
from tests.fakes import FakeDiffusion
from tests.gateway.served import served
from triptych.cli.processes import Service, free_ports
from triptych.cli.topology import four_services, serve_command
from triptych.client import Client
from triptych.errors import Conflict, StageNotReady
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

pytestmark = pytest.mark.timeout(900)

VIGNETTE = Path(__file__).resolve().parents[2] / "triptych" / "vignette"
FIRE_SECONDS = 60.0
SWAP_EVERY_SECONDS = 5.0
CLIENTS = 16
SEEDS = range(8)
PATIENCE_SECONDS = 120.0


@dataclass
class Fire:
    """What the clients were answered.

    Attributes:
        answers: Model and seed of each answer.
        wrong: Whatever was not as it must be.
    """

    url: str
    expected: dict[str, dict[int, str]]
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def from_clients(self, number: int) -> Iterator[None]:
        """So many clients post one request after the other for the length of the block, and finish what they have begun."""
        over = threading.Event()
        clients = [threading.Thread(target=self._post_until, args=(over, place)) for place in range(number)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            over.set()
            for client in clients:
                client.join(PATIENCE_SECONDS)

    def _post_until(self, over: threading.Event, place: int) -> None:
        with httpx2.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client:
            turn = place
            while not over.is_set():
                turn += 1
                try:
                    self._check(client.post(f"{self.url}/generate", json=body(SEEDS[turn % len(SEEDS)])))
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
                    self.wrong.append(repr(error))

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            self.wrong.append(response.text)
            return
        answer = response.json()
        model, seed = answer["model"], answer["images"][0]["seed"]
        if answer["receipt"]["stages"]["diffusion"]["model"] != model:
            self.wrong.append(f"{model} was made by {answer['receipt']['stages']['diffusion']['model']}")
        if answer["images"][0]["b64_json"] != self.expected[model][seed]:
            self.wrong.append(f"other bytes: {model}, seed {seed}")
        self.answers[model, seed] += 1

    def pictures_of(self, model: str) -> int:
        return sum(count for (name, _), count in self.answers.items() if name == model)


def body(seed: int) -> dict[str, Any]:
    return {"prompt": "a red circle on a blue background", "seed": seed, "num_steps": 2}


@dataclass(frozen=True)
class Scene:
    """A gateway that follows a file, before vignette; and vignette-inpainting's diffusion service beside it."""

    url: str
    old: str
    new: str
    file: Path

    def swap(self, to: str) -> str:
        with Client(self.url, timeout_seconds=PATIENCE_SECONDS) as client:
            return str(client.swap("diffusion", [to])["model"])

    def roll_back(self) -> str:
        with Client(self.url, timeout_seconds=PATIENCE_SECONDS) as client:
            return str(client.swap("diffusion", rollback=True)["model"])

    def alone(self) -> dict[int, str]:
        """What the model of the moment makes for each seed, one request after the other."""
        answers = [httpx2.post(f"{self.url}/generate", json=body(seed), timeout=PATIENCE_SECONDS).json() for seed in SEEDS]
        return {answer["images"][0]["seed"]: answer["images"][0]["b64_json"] for answer in answers}

    def told(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx2.get(f"{self.url}/models", timeout=PATIENCE_SECONDS).json()
        return answer


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("fire")
    vignette = TinyModel(VIGNETTE, folder / "compiled")
    inpainting = replace(vignette, folder=VIGNETTE / "inpainting")
    file = folder / "topology.toml"
    *stages, gateway = map(vignette.served_by, four_services(free_ports(4), topology=file))
    (port,) = free_ports(1)
    beside = inpainting.served_by(
        Service(name="beside", port=port, command=serve_command("diffusion", port), ready_path="/v2/health/ready")
    )
    # A request that meets a stage which is not there is told so at once: waiting would hide it.
    gateway = replace(gateway, environment={**gateway.environment, "TRIPTYCH_STAGE_WAIT_SECONDS": "0"})
    with running([*stages, beside, gateway]):
        yield Scene(gateway.url, stages[1].url, beside.url, file)


@pytest.fixture(scope="module")
def expected(scene: Scene) -> dict[str, dict[int, str]]:
    """What each model makes alone; the gateway is at vignette before and after."""
    vignette = scene.alone()
    triptych("swap", "diffusion", "--to", scene.new, "--gateway", scene.url)
    inpainting = scene.alone()
    triptych("swap", "diffusion", "--rollback", "--gateway", scene.url)
    assert all(vignette[seed] != inpainting[seed] for seed in SEEDS)
    return {"vignette": vignette, "vignette-inpainting": inpainting}


def triptych(*arguments: str) -> None:
    command = [sys.executable, "-m", "triptych.cli", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)


def test_swapped_there_and_back_under_fire(scene: Scene, expected: dict[str, dict[int, str]]) -> None:
    fire = Fire(scene.url, expected)
    now = ["vignette"]
    with fire.from_clients(CLIENTS):
        started = time.monotonic()
        while (next_swap := started + len(now) * SWAP_EVERY_SECONDS) < started + FIRE_SECONDS > time.monotonic():
            time.sleep(max(0.0, next_swap - time.monotonic()))
            now.append(scene.swap(scene.new) if now[-1] == "vignette" else scene.roll_back())
        time.sleep(max(0.0, started + FIRE_SECONDS - time.monotonic()))
        took = time.monotonic() - started
    print(f"{len(now) - 1} swaps in {took:.1f} s, {fire.answers.total()} pictures")  # noqa: T201 - shown where it fails

    assert fire.wrong == []
    assert len(now) > 2, "a machine on which a swap takes half a minute proves nothing"
    assert now == [("vignette", "vignette-inpainting")[place % 2] for place in range(len(now))]
    assert min(fire.pictures_of("vignette"), fire.pictures_of("vignette-inpainting")) >= CLIENTS
    if now[-1] != "vignette":
        assert scene.roll_back() == "vignette"
    told = scene.told()
    assert told["retiring"] == []
    kinds = Counter(step["step"] for step in told["steps"])
    assert kinds["let_go"] == kinds["swapped"] + kinds["rolled_back"] == kinds["checked"]


class StillStarting(FakeDiffusion):
    """It answers, and is not ready: its start waits until it is released."""

    def __init__(self) -> None:
        super().__init__(started=False)
        self.released = threading.Event()

    def start(self) -> None:
        self.released.wait()


@contextmanager
def stage_at_work(stage: FakeDiffusion) -> Iterator[str]:
    with served(stage_app(stage, StageSettings())) as url:
        yield url


@contextmanager
def dying(twin: str) -> Iterator[str]:
    """A service of its own that says it is the twin."""
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "tests.end_to_end.dying_diffusion", str(port), twin)
    root = {"PYTHONPATH": str(VIGNETTE.parents[1])}
    service = Service(name="dying", port=port, command=command, ready_path="/v2/health/ready", environment=root)
    with running([service]):
        yield service.url


def test_what_cannot_take_its_place_is_refused_under_fire(scene: Scene, expected: dict[str, dict[int, str]]) -> None:
    wide, starting = FakeDiffusion(), StillStarting()
    wide.profile = replace(asyncio.run(identity_at(scene.old)), model="wide", context_width=1024)
    before = scene.file.read_bytes()
    fire = Fire(scene.url, expected)
    with dying(scene.old) as dies, stage_at_work(wide) as too_wide, stage_at_work(starting) as not_ready:
        with fire.from_clients(4):
            with pytest.raises(Conflict, match="context width 192, the diffusion model 'wide' wants 1024"):
                scene.swap(too_wide)
            with pytest.raises(StageNotReady, match="503"):
                scene.swap(not_ready)
            with pytest.raises(StageNotReady, match=r"it made no picture: the diffusion stage at .* broke off"):
                scene.swap(dies)
            with pytest.raises(StageNotReady, match="cannot be reached"):
                scene.swap(dies)
            until_some_more(fire)
        starting.released.set()

    assert fire.wrong == []
    assert fire.pictures_of("vignette-inpainting") == 0
    assert scene.file.read_bytes() == before
    assert [step["step"] for step in scene.told()["steps"]][-4:] == ["refused"] * 4


def until_some_more(fire: Fire) -> None:
    """Waits until every client has had a picture that was begun after the last refusal."""
    enough, deadline = fire.answers.total() + 2 * 4, time.monotonic() + PATIENCE_SECONDS
    while fire.answers.total() < enough:
        assert time.monotonic() < deadline
        time.sleep(0.05)
