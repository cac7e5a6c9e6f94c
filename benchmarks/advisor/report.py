"""What the advisor says, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.advisor.check import Compared
from benchmarks.advisor.growth import Level
from benchmarks.advisor.plans import Market, Sort
from benchmarks.advisor.search import SEAM, TOO_FEW, TOO_MANY, Advice, Goal
from benchmarks.advisor.verdict import Verdict, judge
from benchmarks.report import markdown_table

_WIDTH = 130


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found out.

    Attributes:
        results, machines: Which files it stands on.
        quickest_seconds: Of a picture alone, on the quickest machines.
        growth: By rate; empty where it was not asked for.
    """

    results: str
    machines: str
    market: Market
    goal: Goal
    quickest_seconds: float
    advices: Mapping[Sort, Advice | None]
    compared: Sequence[Compared]
    growth: Sequence[Level] = ()

    @property
    def verdict(self) -> Verdict | None:
        return self.verdict_on(self.advices)

    def verdict_on(self, advices: Mapping[Sort, Advice | None]) -> Verdict | None:
        return judge(advices, p95_seconds=self.goal.p95_seconds)


def as_markdown(report: Report) -> str:
    """The whole report."""
    parts = [_head(report), _answer(report), _options(report), _assumptions(report), _check(report)]
    if report.growth:
        parts.append(_growth(report))
    return "\n\n".join(parts) + "\n"


def _head(report: Report) -> str:
    times = report.market.times
    requests = ", ".join(f"{each.share:.0%} {each.size} at {each.num_steps} steps" for each in times.requests)
    return (
        f"# Split or not, at {report.goal.rate:g} requests a second\n\n"
        f"{times.model}: {requests}; one picture a request, p95 within {report.goal.p95_seconds:g} s.\n"
        f"Service times: `{report.results}`, measured on {times.machine}, {times.date}, by {times.measured_by}.\n"
        f"Machines: `{report.machines}`, which are assumptions."
    )


def _answer(report: Report) -> str:
    if verdict := report.verdict:
        return f"**{verdict.sentence}**"
    return (
        f"**No number of these machines keeps {report.goal.p95_seconds:g} s: "
        f"a picture alone takes {report.quickest_seconds:.3g} s on the quickest.**"
    )


def _options(report: Report) -> str:
    currency = report.market.assumptions.currency
    header = ("option", "machines", "ratio", "utilisation", "bottleneck", "p95 s", f"{currency} / 1000 pictures", "range")
    rows = [(sort, *_option(report, advice)) for sort, advice in report.advices.items()]
    return "\n\n".join([markdown_table(header, rows), _legend(report)])


def _option(report: Report, advice: Advice | None) -> tuple[str, ...]:
    if advice is None:
        return ("none that keeps it", *[""] * 6)
    return (
        machines_of(report.market, advice, report.goal.rate),
        ratio(advice),
        ", ".join(f"{name} {share:.0%}" for name, share in advice.utilisations.items()),
        advice.bottleneck,
        f"{advice.p95.value:.3g} ± {advice.p95.half_width:.2g}" if advice.is_simulated else f"{advice.p95.value:.3g}",
        f"{advice.cost:.3g}",
        f"{advice.cost_low:.3g} to {advice.cost_high:.3g}",
    )


def machines_of(market: Market, advice: Advice, rate: float) -> str:
    """Such as `text_encoder 1 cpu-2, diffusion 61 + 1 a10, ..., gateway 1 cpu-2`: those needed, and the spares."""
    parts = []
    for group, spare in zip(advice.plan.groups, advice.spares, strict=True):
        parts.append(f"{group.name} {group.replicas}{f' + {spare}' if spare else ''} {group.machine}")
    if gateways := market.gateways(advice.plan, rate):
        parts.append(f"gateway {gateways} {market.assumptions.gateway.machine}")
    return ", ".join(parts)


def ratio(advice: Advice) -> str:
    """encoder : diffusion : decoder, in replicas; a monolith has none."""
    return " : ".join(map(str, advice.plan.replicas)) if len(advice.plan.groups) > 1 else ""


def _legend(report: Report) -> str:
    sizing = next((advice.sizing_rate for advice in report.advices.values() if advice), report.goal.rate)
    load = report.market.assumptions.load
    text = (
        f"The ratio is encoder : diffusion : decoder, in replicas. Sized for {sizing:.4g} requests a second (the first option): "
        f"the load may grow by {load.growth_per_minute:.1%} a minute while a machine and its process start. Machines after a + "
        f"are spares, so that losses leave fewer than needed in no more than {1 - load.availability:.2%} of the time. "
        f"Utilisation is the rate over what the group could do at most, with full calls. Pools of up to {SEAM} replicas are "
        f"simulated (± is 95 %), unless they are so busy that a run ends before their queues have settled; those and larger ones "
        f"are computed in closed form, which at {SEAM} asks for at most {TOO_MANY:.0%} replicas too many and {TOO_FEW:.0%} too "
        "few. The range is what that makes of the cost."
    )
    return fill(text, _WIDTH)


def _assumptions(report: Report) -> str:
    market = report.market
    lines = ["## What this stands on", ""]
    lines += [f"- {note}" for note in (*market.times.notes, *_gaps(market))]
    lines += [
        f"- {name}: {machine.price_per_hour:g} {market.assumptions.currency} an hour, {machine.memory_gib:g} GiB, "
        + ", ".join(f"{stage} {market.assumptions.speed(name, stage):g}x" for stage in machine.speed)
        + f", starts in {machine.start_seconds:g} s, is lost every {machine.hours_between_losses:g} h (assumed)"
        for name, machine in market.assumptions.machines.items()
    ]
    return "\n".join(lines)


def _gaps(market: Market) -> list[str]:
    """What the results do not tell, and the advice therefore does not know."""
    gaps = []
    for name, stage in market.times.stages.items():
        calls = [stage.calls(request.size) for request in market.times.requests]
        if all(len(each) == 1 for each in calls):
            gaps.append(f"{name}: one batch size was measured, {min(calls[0])} row(s): what larger calls would gain is not known")
        if all(spread.rounds == 1 for each in calls for spread in each.values()):
            gaps.append(f"{name}: measured once, so that its calls are taken to last equally long")
    return gaps


def _check(report: Report) -> str:
    title = "## The simulation against the measured load curve\n\n"
    if not report.compared:
        return f"{title}The results hold none: how far the simulation is from this machine is not known."
    header = ("requests/s", "quantity", "measured", "simulated", "error")
    rows = [row for each in report.compared for row in _check_rows(each)]
    worst = max((abs(error) for each in report.compared for error in each.errors.values()), default=0.0)
    return f"{title}{markdown_table(header, rows)}\n\nThe largest error is {worst:.0%}."


def _check_rows(each: Compared) -> list[tuple[str, ...]]:
    measured = {
        "throughput": each.measured.throughput_per_second,
        "p50": each.measured.p50_seconds,
        "p95": each.measured.p95_seconds,
    }
    return [
        (
            f"{each.measured.offered_per_second:g}",
            name,
            f"{measured[name]:.3g}",
            f"{measured[name] * (1 + error):.3g}",
            f"{error:+.0%}",
        )
        for name, error in each.errors.items()
    ]


def _growth(report: Report) -> str:
    currency = report.market.assumptions.currency
    header = ("requests/s", *(f"{sort}, {currency} / 1000" for sort in Sort), "ratio of the cheapest split", "split?")
    rows = [_growth_row(report, level) for level in report.growth]
    return (
        f"## From {report.growth[0].rate:g} to {report.growth[-1].rate:g} requests a second\n\n"
        f"{markdown_table(header, rows)}\n\n"
        "A * is computed in closed form. With spares against losses and room for growth, as above; in cost.png and cost.svg."
    )


def _growth_row(report: Report, level: Level) -> tuple[str, ...]:
    splits = [advice for sort, advice in level.advices.items() if sort is not Sort.MONOLITH and advice]
    verdict = report.verdict_on(level.advices)
    costs = (f"{advice.cost:.3g}{'' if advice.is_simulated else ' *'}" if advice else "none" for advice in level.advices.values())
    best = ratio(min(splits, key=lambda advice: advice.cost)) if splits else ""
    return (f"{level.rate:g}", *costs, best, "" if verdict is None else "yes" if verdict.split else "no")


def as_json(report: Report) -> str:
    """The same for programs; what is infinite is null."""
    document = {
        "results": report.results,
        "machines": report.machines,
        "model": report.market.times.model,
        "measured": {"machine": report.market.times.machine, "date": report.market.times.date},
        "goal": {"rate": report.goal.rate, "p95_seconds": report.goal.p95_seconds},
        "verdict": report.verdict,
        "options": report.advices,
        "load_curve": [{"measured": each.measured, "errors": each.errors} for each in report.compared],
        "growth": report.growth,
        "assumptions": report.market.assumptions,
    }
    return json.dumps(_plain(document), indent=2) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(report: Report, folder: Path) -> None:
    """advice.md, advice.json, and cost.png and cost.svg where the growth was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "advice.md").write_text(as_markdown(report), encoding="utf-8")
    (folder / "advice.json").write_text(as_json(report), encoding="utf-8")
