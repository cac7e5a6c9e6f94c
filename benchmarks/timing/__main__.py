"""Should you split, and how? Measures scenarios of where the stages live, and their peers (docs/benchmarks.md).

An interrupted run goes on where it was with the same command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import platformdirs

from benchmarks.report import circumstances
from benchmarks.timing import parts
from benchmarks.timing.display import ProgressDisplay
from benchmarks.timing.folders import choose_folder
from benchmarks.timing.journal import Journal
from benchmarks.timing.peers import PEERS, REFERENCE_PYTHON, ROOT
from benchmarks.timing.plan import PARTS, PROFILES, RANDOM_MODEL, Plan, with_sizes_of_stand_in
from benchmarks.timing.processes import STAND_IN, Served
from benchmarks.timing.results import make_document
from benchmarks.timing.scenarios import GIVEN, LOCAL, Scenario
from benchmarks.timing.session import Session
from benchmarks.timing.tables import write_report
from triptych.cli.console import complain, say
from triptych.errors import StartError, TriptychError

PACKAGES = ("triptych", "fastapi", "uvicorn", "httpx2", "numpy", "keras", "openvino")
_SETTING = "TRIPTYCH_"
_NOT_TOLD = ("TOKEN", "KEYS", "KEY", "CERTIFICATE", "FOLDER", "FILE", "DATABASE", "STORE")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triptych bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="quick", help="what is measured, and at which size")
    parser.add_argument("--folder", type=Path, help="where to; by default benchmarks/results/DATE-MACHINE")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"only these of {', '.join(PARTS)}")
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="only these; the first is what others are compared with")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="NAME", help=f"only these of {', '.join(PEERS)}")
    parser.add_argument("--model", help="another one: a name, a path, or stand-in, which has no networks")
    parser.add_argument("--threads", type=int, help="that each network may use, and replicas share; all cores by default")
    for stage in ("text-encoder", "diffusion", "decoder"):
        parser.add_argument(f"--{stage}", metavar="PLACE", help=f"of a scenario `{GIVEN}`: local, remote or an address")
    parser.add_argument("--batch", type=int, help="pictures of one request of the sequential part")
    parser.add_argument("--steps", type=int, help="of its pictures")
    parser.add_argument("--cache-interval", type=int, help="of its pictures, for which TRIPTYCH_FEATURE_REUSE must be true")
    parser.add_argument("--guidance-start", type=float, help="of its pictures: the share of the steps before guidance begins")
    parser.add_argument("--guidance-end", type=float, help="of its pictures: the share of the steps after which it has ended")
    parser.add_argument("--rounds", type=int, help="of the sequential part, and of the service times")
    parser.add_argument("--loads", type=int, help="of the open loop, in search of each scenario's knee")
    parser.add_argument("--requests", type=int, help="of each of them")
    parser.add_argument("--flood", type=int, help="requests of the last load, at three times the knee; 0 leaves it out")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="N", help="pictures of a call, for the service times")
    parser.add_argument("--compiled-starts", type=int, help="cold starts of each scenario from compiled networks")
    parser.add_argument("--busy-share", type=float, default=0.1, help="units are flagged when others take more of the machine")
    parser.add_argument("--repeat-busy", type=int, default=0, metavar="N", help="measure a flagged unit again, up to N times")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and pictures")
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The profile, with what the command line changes in it.

    Raises:
        StartError: A scenario is unknown or impossible.
    """
    plan = PROFILES[arguments.profile](arguments.threads or len(os.sched_getaffinity(0)))
    names = {"steps": "num_steps", "parts": "parts", "peers": "peers", "batch_sizes": "batch_sizes"}
    names |= {name: name for name in ("cache_interval", "guidance_start", "guidance_end")}
    names |= {name: name for name in ("model", "batch", "rounds", "compiled_starts", "busy_share", "repeat_busy", "seed")}
    given = {field: getattr(arguments, name) for name, field in names.items() if getattr(arguments, name) is not None}
    told: dict[str, Any] = {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
    loads = {"loads": "most", "requests": "requests", "flood": "flood_requests"}
    load = {field: getattr(arguments, name) for name, field in loads.items() if getattr(arguments, name) is not None}
    changed = replace(plan, **told, scenarios=_scenarios(plan, arguments), load=replace(plan.load, **load))
    if changed.extrapolate_to is not None and changed.num_steps >= changed.extrapolate_to:
        changed = replace(changed, extrapolate_to=None)
    return with_sizes_of_stand_in(changed) if changed.model == STAND_IN else changed


def _scenarios(plan: Plan, arguments: argparse.Namespace) -> tuple[Scenario, ...]:
    places = (arguments.text_encoder, arguments.diffusion, arguments.decoder)
    known = {scenario.name: scenario for scenario in plan.scenarios if scenario.replicas <= plan.threads}
    if any(places):
        text_encoder, diffusion, decoder = (place or LOCAL for place in places)
        known[GIVEN] = Scenario(name=GIVEN, text_encoder=text_encoder, diffusion=diffusion, decoder=decoder)
    if arguments.scenarios is None:
        return tuple(known.values())
    if unknown := [name for name in arguments.scenarios if name not in known]:
        raise StartError(f"there is no scenario {unknown[0]!r} for {plan.threads} threads; there is {', '.join(known)}")
    return tuple(known[name] for name in arguments.scenarios)


def make_header(plan: Plan, arguments: list[str]) -> dict[str, Any]:
    """What stands beside every number. Settings of the environment reach the services, so they are told; tokens are not."""
    settings = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SETTING)}
    settings = {name: value if _may_be_told(name) else "set" for name, value in settings.items()}
    options = asdict(plan) | {"model": _without_its_place(plan.model)}
    return {
        **circumstances(PACKAGES),
        "command": " ".join(["triptych", "bench", *map(shlex.quote, _without_places(arguments))]),
        "settings": settings,
        "options": options,
    }


def _may_be_told(setting: str) -> bool:
    return not setting.endswith(_NOT_TOLD)


def _without_its_place(text: str) -> str:
    """Where things lie on this machine is nobody's business."""
    return Path(text).name if Path(text).is_absolute() else text


def _without_places(arguments: list[str]) -> list[str]:
    return [_without_its_place(argument) for argument in arguments]


def find_model(plan: Plan) -> tuple[str, str | None]:
    """What services are told, and the folder that peers read; None where there is none.

    Raises:
        StartError: The random model is to be written, and what writes it is not installed.
    """
    if plan.model == RANDOM_MODEL:
        folder = str(_random_model())
        return folder, folder
    if plan.model == "vignette":
        return plan.model, str(ROOT / "triptych" / "vignette")
    return plan.model, plan.model if Path(plan.model).is_dir() else None


def _random_model() -> Path:
    """Written once, into the user's folder for caches: 2.1 GB."""
    folder = platformdirs.user_cache_path("triptych") / "benchmarks" / RANDOM_MODEL
    if folder.exists():
        return folder
    if not REFERENCE_PYTHON.exists():
        raise StartError(f"writing {RANDOM_MODEL} needs torch and diffusers: `make .venv-reference/.installed` brings them")
    say(f"Writing {RANDOM_MODEL}, once: 2.1 GB.")
    begun = folder.with_name(f"{RANDOM_MODEL}.begun")
    code = "import sys; from pathlib import Path; from benchmarks.random_checkpoint import write_stable_diffusion_1 as write; "
    subprocess.run([REFERENCE_PYTHON, "-c", f"{code}write(Path(sys.argv[1]))", begun], cwd=ROOT, check=True)
    return begun.rename(folder)


def most_units(plan: Plan) -> int:
    """How many units a run has at most."""
    pictures = plan.rounds * (len(plan.scenarios) + 1) + plan.rounds_of_others * len(plan.peers)
    sizes = len(plan.sizes)
    flood = 1 if plan.load.flood_requests else 0
    of_part = {
        "wire": 2,
        "sequential": len(plan.peers) + pictures,
        "service-times": (1 + 2 * sizes) * len(plan.batch_sizes) + 1,
        "open-loop": len(plan.scenarios) * (1 + plan.load.most + flood),
        "cold-start": len(plan.scenarios),
    }
    return sum(of_part[part] for part in plan.parts)


def run(plan: Plan, folder: Path, header: dict[str, Any]) -> None:
    """Measures what the folder's journal does not have yet, and writes the report.

    Raises:
        TriptychError: The folder is of another run, or something could not be measured.
    """
    journal = Journal(folder / "journal.jsonl")
    journal.begin(header)
    model, model_folder = find_model(plan)
    served = Served(model=model, threads=plan.threads, sizes=() if model == "stand-in" else plan.sizes)
    with ProgressDisplay(most_units(plan), len(journal.records)) as display:
        session = Session(plan, journal, display, served=served, model_folder=model_folder)
        try:
            parts.measure(session)
        finally:
            session.close()
    write_report(folder, make_document(journal))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a run the way Ctrl-C does, also where whoever started it has Ctrl-C ignored."""
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = make_parser().parse_args()
    try:
        plan = make_plan(arguments)
        header = make_header(plan, sys.argv[1:])
        folder = choose_folder(arguments.folder, header)
        run(plan, folder, header)
    except TriptychError as error:
        complain(error.message, getattr(error, "lines", ()))
        sys.exit(1)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from here")
        sys.exit(130)
    say(f"The results are in {folder.name}: results.md, results.json and plots.")


if __name__ == "__main__":
    main()
