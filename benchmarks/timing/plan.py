"""What a run measures: the profiles, and what the command line changes in them. All of it is data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.stand_in import HEIGHT, WIDTH
from benchmarks.timing.asking import Asked
from benchmarks.timing.scenarios import ALL_IN_ONE, ONE_ENDPOINT, THREE_ENDPOINTS, Scenario, replicas

PARTS = ("wire", "sequential", "service-times", "open-loop", "cold-start")
RANDOM_MODEL = "random-sd-v1-5"
"""Stable Diffusion 1.5's networks at full size with random weights, written by benchmarks/random_checkpoint.py."""

AGAIN = ", again"
"""Behind a scenario's name: the same processes measured once more in each round. What these two differ by is noise."""


WARM_UP_STEPS = 2
"""Of a picture that is made before anything counts."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request of a mixture."""

    width: int
    height: int
    num_steps: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}, {self.num_steps} steps"


@dataclass(frozen=True, kw_only=True)
class Load:
    """The open loop.

    Attributes:
        kinds: Equally likely.
        requests: Of one load.
        most: Loads in search of a scenario's knee.
        first: The first load's rate, as a share of what one request after the other allows at every replica.
        slow: At the knee p95 is so many times what a request takes that is alone.
        flood_requests: Of the last load, which comes at `flood_rate` times the knee; 0 leaves it out.
    """

    kinds: tuple[Kind, ...]
    requests: int
    most: int
    first: float = 0.5
    slow: float
    flood_requests: int
    flood_rate: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run.

    Attributes:
        batch: Pictures of one request of the sequential part.
        cache_interval, guidance_start, guidance_end: Of the sequential part's pictures, as `/generate` has them; peers have
            no such thing, and make theirs in full.
        rounds: Of the sequential part.
        fewer_rounds: Of what is not compared round by round: peers, service times, requests without load. None is as many.
        peers: By their names in `peers/__init__.py`.
        parts: Of `PARTS`.
        threads: That a network may use, and all replicas together.
        keep_all: Whether all scenarios stay resident; else one at a time.
        batch_sizes: Rows for which each stage's time is measured.
        compiled_starts: Cold starts of each scenario from compiled networks; one more comes before them, from nothing.
        extrapolate_to: Steps for which the sequential part's seconds are extrapolated; None is not at all.
        busy_share: A unit is flagged when others took more than this share of the machine.
        repeat_busy: How often a flagged unit is measured again.
        seed: Of arrivals and pictures.
    """

    profile: str
    model: str
    width: int
    height: int
    batch: int
    num_steps: int
    cache_interval: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    rounds: int
    scenarios: tuple[Scenario, ...]
    peers: tuple[str, ...]
    parts: tuple[str, ...] = PARTS
    threads: int
    keep_all: bool
    load: Load
    batch_sizes: tuple[int, ...]
    compiled_starts: int
    extrapolate_to: int | None = None
    fewer_rounds: int | None = None
    busy_share: float = 0.1
    repeat_busy: int = 0
    seed: int = 0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Of all pictures that are asked for, the sequential part's first."""
        return tuple(dict.fromkeys(((self.width, self.height), *self._sizes_of_load)))

    def sizes_of(self, part: str) -> tuple[tuple[int, int], ...]:
        """Of the pictures that a part asks for; all where what one part has started is kept for the next."""
        one_size = part in ("sequential", "cold-start") and not self.keep_all
        return ((self.width, self.height),) if one_size else self.sizes

    @property
    def _sizes_of_load(self) -> list[tuple[int, int]]:
        return [(kind.width, kind.height) for kind in self.load.kinds]

    @property
    def rounds_of_others(self) -> int:
        """Of what is not compared round by round."""
        return min(self.rounds, self.fewer_rounds or self.rounds)

    def picture(self, number: int) -> Asked:
        """What the sequential part asks for in a round."""
        return Asked(
            num_images=self.batch,
            num_steps=self.num_steps,
            width=self.width,
            height=self.height,
            seed=self.seed + number,
            cache_interval=self.cache_interval,
            guidance_start=self.guidance_start,
            guidance_end=self.guidance_end,
        )

    def first_pictures(self, part: str) -> list[Asked]:
        """One of each size and batch that a part asks for, of few steps: what is slow the first time is slow in the first."""
        pictures = [self.picture(0), *(self.single_pictures() if "open-loop" in self.parts else ())]
        few = dict.fromkeys(replace(picture, num_steps=WARM_UP_STEPS, seed=self.seed) for picture in pictures)
        return [picture for picture in few if (picture.width, picture.height) in self.sizes_of(part)]

    def single_pictures(self) -> list[Asked]:
        """One of each kind of the open loop."""
        return [
            Asked(num_images=1, num_steps=kind.num_steps, width=kind.width, height=kind.height, seed=self.seed)
            for kind in self.load.kinds
        ]


SCENARIOS = (ALL_IN_ONE, THREE_ENDPOINTS, ONE_ENDPOINT, replicas(2))
DIFFUSERS = ("diffusers-float32", "diffusers-bfloat16", "diffusers-compiled", "diffusers-openvino")
KERAS_CV = ("keras-cv", "keras-cv-without-xla", "keras-cv-bfloat16")


def quick(threads: int) -> Plan:
    """Vignette, at the ancestor's batch of 4: under 15 minutes on two cores."""
    kinds = tuple(Kind(width=width, height=128, num_steps=steps) for width in (128, 192) for steps in (10, 25))
    return Plan(
        profile="quick",
        model="vignette",
        width=128,
        height=128,
        batch=4,
        num_steps=25,
        rounds=10,
        scenarios=SCENARIOS,
        peers=DIFFUSERS,
        threads=threads,
        keep_all=True,
        load=Load(kinds=kinds, requests=50, most=5, slow=4.0, flood_requests=200),
        batch_sizes=(1, 2, 4, 8),
        compiled_starts=2,
    )


def real_size(threads: int) -> Plan:
    """Stable Diffusion 1.5's size with random weights."""
    kinds = tuple(Kind(width=size, height=size, num_steps=steps) for size in (256, 512) for steps in (2, 5))
    return Plan(
        profile="real-size",
        model=RANDOM_MODEL,
        width=512,
        height=512,
        batch=1,
        num_steps=5,
        rounds=5,
        fewer_rounds=2,
        scenarios=SCENARIOS,
        peers=(*DIFFUSERS, *KERAS_CV),
        threads=threads,
        keep_all=False,
        # A search would take hours. At twice what a scenario can take, what it makes a second is what it can.
        load=Load(kinds=kinds, requests=12, most=1, first=2.0, slow=4.0, flood_requests=0),
        batch_sizes=(1, 2),
        compiled_starts=1,
        extrapolate_to=25,
    )


def with_sizes_of_stand_in(plan: Plan) -> Plan:
    """The plan with the one size that the stand-in has."""
    kinds = tuple(dict.fromkeys(replace(kind, width=WIDTH, height=HEIGHT) for kind in plan.load.kinds))
    return replace(plan, width=WIDTH, height=HEIGHT, load=replace(plan.load, kinds=kinds))


PROFILES = {"quick": quick, "real-size": real_size}
