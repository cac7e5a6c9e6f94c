"""From the journal to the document that is kept: medians, differences, curves, and what the advisor reckons with."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from benchmarks.advisor.service_times import SECTION, parse_service_times
from benchmarks.timing.asking import NAMES
from benchmarks.timing.busy import SHORTEST_SECONDS
from benchmarks.timing.journal import Journal, Record
from benchmarks.timing.load import Tried, kept_up, knee
from benchmarks.timing.peers import PEERS
from benchmarks.timing.scenarios import REMOTE
from benchmarks.timing.service_times import ROWS_PER_PICTURE
from benchmarks.timing.statistics import paired_difference, spread
from triptych.contract import StageName

SCHEMA = 1
Document = dict[str, Any]


def make_document(journal: Journal) -> Document:
    """Everything that a run's tables, plots and advice are made of."""
    assert journal.header is not None
    kept = _calmest(journal)
    document: Document = {
        "schema": SCHEMA,
        **journal.header,
        "ended": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "busy": _busy(kept.values()),
    }
    makers: Mapping[str, Callable[[Document, Mapping[str, Record]], Any]] = {
        "peers": _peers,
        "model": _model,
        "sequential": _sequential,
        "wire": _wire,
        "open_loop": _open_loop,
        "cold_start": _cold_start,
    }
    for name, make in makers.items():
        if (section := make(document, kept)) is not None:
            document[name] = section
    if (section := _service_times(document, kept)) is not None:
        document[SECTION] = section
    return document


def _calmest(journal: Journal) -> dict[str, Record]:
    return {unit: journal.calmest(unit) for unit in dict.fromkeys(record["unit"] for record in journal.records)}


def _of(kept: Mapping[str, Record], prefix: str) -> dict[str, Any]:
    """What was measured of the units below a prefix, by the rest of their keys."""
    return {unit.removeprefix(prefix): record["measured"] for unit, record in kept.items() if unit.startswith(prefix)}


def _busy(records: Iterable[Record]) -> Document:
    records = [record for record in records if record["busy"]["seconds"] >= SHORTEST_SECONDS]
    shares = [record["busy"]["others_share"] for record in records]
    return {
        "units": len(shares),
        "flagged_units": [record["unit"] for record in records if record["is_flagged"]],
        "median_share_of_others": statistics.median(shares or [0.0]),
        "largest_share_of_others": max(shares, default=0.0),
    }


def _peers(document: Document, kept: Mapping[str, Record]) -> Document | None:
    return {name: {"label": PEERS[name].label, **told} for name, told in _of(kept, "peer/").items()} or None


def _model(document: Document, kept: Mapping[str, Record]) -> Document | None:
    """Who the stages were, by what their answers say."""
    return next((told["stages"] for told in _of(kept, "sequential/").values() if "stages" in told), None)


# Sequential


def _rounds(kept: Mapping[str, Record]) -> dict[str, dict[int, Any]]:
    """What was measured of each subject, by round."""
    rounds: dict[str, dict[int, Any]] = {}
    for key, measured in _of(kept, "sequential/").items():
        subject, _, number = key.rpartition("/")
        if "wall" in measured:
            rounds.setdefault(subject, {})[int(number)] = measured
    return rounds


def _sequential(document: Document, kept: Mapping[str, Record]) -> Document | None:
    rounds = _rounds(kept)
    if not rounds:
        return None
    baseline = document["options"]["scenarios"][0]["name"]
    return {
        "baseline": baseline,
        "subjects": {
            subject: _subject(measured, rounds[baseline], document["options"]) for subject, measured in sorted(rounds.items())
        },
    }


def _subject(measured: Mapping[int, Any], baseline: Mapping[int, Any], options: Mapping[str, Any]) -> Document:
    values = list(measured.values())
    common = sorted(measured.keys() & baseline.keys())
    difference = paired_difference([measured[n]["wall"] for n in common], [baseline[n]["wall"] for n in common])
    document: Document = {
        "seconds": {name: asdict(spread([each[name] for each in values])) for name in (*NAMES, "wall") if name in values[0]},
        "more_than_baseline": asdict(difference),
        "silent_stages": values[0].get("silent", []),
    }
    if (steps := options["extrapolate_to"]) is not None:
        more = (steps - options["num_steps"]) / options["num_steps"]
        document["extrapolated"] = {
            "num_steps": steps,
            "wall_seconds": statistics.median(each["wall"] + more * each["diffuse"] for each in values),
        }
    return document


# The other parts


def _wire(document: Document, kept: Mapping[str, Record]) -> Document | None:
    told = _of(kept, "wire/")
    return {name: value for each in told.values() for name, value in each.items()} or None


def _open_loop(document: Document, kept: Mapping[str, Record]) -> Document | None:
    slow = document["options"]["load"]["slow"]
    return {
        scenario["name"]: _curve(_of(kept, f"open-loop/{scenario['name']}/"), slow)
        for scenario in document["options"]["scenarios"]
        if f"open-loop/{scenario['name']}/alone" in kept
    } or None


def _curve(units: Mapping[str, Any], slow: float) -> Document:
    alone = statistics.fmean(units["alone"]["seconds"].values())
    loads = sorted((each for each in units.values() if each.get("why") == "rate"), key=lambda each: float(each["rate"]))
    floods = [each for each in units.values() if each.get("why") == "flood"]
    tried = [Tried(rate=each["rate"], kept_up=kept_up(each, alone_seconds=alone, slow=slow)) for each in loads]
    return {
        "alone_seconds": units["alone"]["seconds"],
        "knee_per_second": knee(tried),
        "loads": [{**load, "kept_up": each.kept_up} for load, each in zip(loads, tried, strict=True)],
        "flood": floods[0] if floods else None,
    }


def _cold_start(document: Document, kept: Mapping[str, Record]) -> Document | None:
    return {
        name: {
            "nothing": told["nothing"],
            "compiled": {
                what: statistics.median(start[what] for start in told["compiled"]) for what in told["nothing"] if told["compiled"]
            },
            "alone": told["alone"],
        }
        for name, told in _of(kept, "cold-start/").items()
    } or None


# What the advisor reckons with


def _service_times(document: Document, kept: Mapping[str, Record]) -> Document | None:
    """The section whose schema is in benchmarks/advisor/service_times.py; None where a part of it was not measured.

    It is of the first scenario whose three stages are services.
    """
    name = _split_name(document)
    units = _of(kept, "service-times/")
    rounds = list(_rounds(kept).get(name or "", {}).values())
    if name is None or "memory" not in units or not rounds or name not in document.get("cold_start", {}):
        return None
    memory, alone = units.pop("memory")["peak_memory_bytes"], document["cold_start"][name]["alone"]
    kinds = document["options"]["load"]["kinds"]
    section: Document = {
        "model": document["options"]["model"],
        "machine": document["machine"],
        "date": document["date"],
        "measured_by": document["command"],
        "notes": _notes(document),
        "requests": [
            {"size": f"{kind['width']}x{kind['height']}", "num_steps": kind["num_steps"], "share": 1 / len(kinds)}
            for kind in kinds
        ],
        "stages": {
            stage: {
                "rows_per_picture": ROWS_PER_PICTURE[stage],
                "seconds": _seconds(stage, list(units.values())),
                "cold_start_seconds": alone[stage],
                "memory_bytes": memory[stage],
            }
            for stage in StageName
        },
        "transfer_seconds": {stage: _transfer(stage, rounds) for stage in StageName},
        "gateway": {
            "seconds": asdict(spread([each["gateway"] for each in rounds])),
            "cold_start_seconds": alone["central"],
            "memory_bytes": memory["central"],
        },
    }
    if (curve := _load_curve(document, name)) is not None:
        section["load_curve"] = curve
    parse_service_times(section, SECTION)
    return section


def _transfer(stage: StageName, rounds: Sequence[Any]) -> Document:
    """A stage counts a request a moment after its last byte has arrived elsewhere: on a busy machine that may be less than 0."""
    return asdict(spread([max(0.0, each["transfer_of"][stage]) for each in rounds]))


def _split_name(document: Document) -> str | None:
    scenarios = document["options"]["scenarios"]
    split = (each for each in scenarios if all(each[stage] == REMOTE for stage in StageName))
    return next((str(each["name"]) for each in split), None)


def _notes(document: Document) -> list[str]:
    flagged = [unit for unit in document["busy"]["flagged_units"] if unit.startswith("service-times/")]
    share = document["options"]["busy_share"]
    return (
        [f"others took more than {share:.0%} of the machine while {len(flagged)} of the calls were measured"] if flagged else []
    )


def _seconds(stage: StageName, units: Sequence[Any]) -> Document:
    """Size -> rows -> spread."""
    seconds: Document = {}
    for unit in units:
        if unit["stage"] == stage:
            size = "any" if stage is StageName.TEXT_ENCODER else unit["size"]
            rows = str(unit["pictures"] * ROWS_PER_PICTURE[stage])
            seconds.setdefault(size, {})[rows] = asdict(spread(unit["seconds"]))
    return seconds


def _load_curve(document: Document, name: str) -> Document | None:
    loads = document.get("open_loop", {}).get(name, {}).get("loads", [])
    points = [
        {
            "offered_per_second": load["offered_rate"],
            "throughput_per_second": load["throughput"],
            **{field: load[field] for field in ("requests", "shed", "p50_seconds", "p95_seconds", "p99_seconds")},
        }
        for load in loads
        if load["completed"]
    ]
    return {"scenario": name, "points": points} if points else None
