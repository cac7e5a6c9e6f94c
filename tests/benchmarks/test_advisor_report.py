"""What the advisor says: the verdict, the comparison with a load curve, the report, the plot and the command."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.advisor import __main__ as command
from benchmarks.advisor import growth
from benchmarks.advisor.check import compare
from benchmarks.advisor.plans import Market, Sort
from benchmarks.advisor.report import ratio
from benchmarks.advisor.search import Advice, advise
from benchmarks.advisor.service_times import LoadCurve, LoadPoint, read_service_times
from benchmarks.advisor.verdict import judge
from tests.benchmarks.test_advisor_search import goal, machine, market
from triptych.cli.commands import app


@pytest.fixture(scope="module")
def advices() -> dict[Sort, Advice | None]:
    return advise(market({"plain": machine(1.0)}), goal(1))


@pytest.mark.parametrize(
    ("monolith", "split", "is_split", "sentence"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), False, "Do not split: the cheapest split (split, one kind of machine) costs as much."),
        (
            (1.0, 1.0, 1.0),
            (1.5, 0.5, 2.0),
            False,
            "Do not split: the cheapest split (split, one kind of machine) costs 50% more.",
        ),
        (
            (1.0, 0.9, 1.1),
            (0.92, 0.9, 0.95),
            False,
            "Do not split: the 8.0% that a split (split, one kind of machine) would save is within",
        ),
        (
            (1.0, 0.9, 1.1),
            (0.5, 0.4, 0.6),
            True,
            "Split (split, one kind of machine): it saves 50% of the cost, and 33% at the least.",
        ),
        (None, (0.5, 0.4, 0.6), True, "no machine of the table runs a monolith that keeps 3 s"),
        ((1.0, 1.0, 1.0), None, False, "Do not split: no split keeps the percentile, and monoliths do."),
    ],
)
def test_a_split_must_be_cheaper_beyond_the_noise(
    advices: dict[Sort, Advice | None], monolith: Any, split: Any, is_split: bool, sentence: str
) -> None:
    def costing(sort: Sort, costs: Any) -> Advice | None:
        advice = advices[sort]
        assert advice is not None
        return costs and replace(advice, cost=costs[0], cost_low=costs[1], cost_high=costs[2])

    found = {Sort.MONOLITH: costing(Sort.MONOLITH, monolith), Sort.ONE_KIND: costing(Sort.ONE_KIND, split), Sort.MIXED: None}

    verdict = judge(found, p95_seconds=3)

    assert verdict is not None
    assert verdict.split is is_split
    assert sentence in verdict.sentence


def test_where_nothing_keeps_the_percentile_there_is_no_verdict() -> None:
    assert judge(dict.fromkeys(Sort), p95_seconds=3) is None


def with_curve(*points: tuple[float, float, float, int]) -> Market:
    """The market of the search's tests, with a load curve of (offered, throughput, p50 = p95, shed)."""
    place = market({"plain": machine(1.0)})
    measured = tuple(
        LoadPoint(
            offered_per_second=offered,
            throughput_per_second=throughput,
            requests=100,
            shed=shed,
            p50_seconds=seconds,
            p95_seconds=seconds,
            p99_seconds=seconds,
        )
        for offered, throughput, seconds, shed in points
    )
    return Market(replace(place.times, load_curve=LoadCurve(scenario="three-endpoints", points=measured)), place.assumptions)


def test_the_error_against_a_load_curve_is_told() -> None:
    """At next to no load a request takes 1.0 s of work, 10 ms of the gateway and three hops of 10 ms."""
    right, wrong, full = compare(with_curve((1e-4, 1e-4, 1.04, 0), (1e-4, 1e-4, 0.52, 0), (5.0, 0.8, 9.0, 70)))

    assert right.errors["p50"] == pytest.approx(0, abs=0.001)
    assert right.errors["p95"] == pytest.approx(0, abs=0.001)
    assert right.errors["throughput"] == pytest.approx(0, abs=0.1)
    assert wrong.errors["p95"] == pytest.approx(1.0, abs=0.01)
    # The machine is full at one request a second; latencies of a full machine say how long was measured.
    assert full.errors == pytest.approx({"throughput": 0.25})


def test_all_in_one_has_no_hops() -> None:
    place = with_curve((1e-4, 1e-4, 1.01, 0))
    assert place.times.load_curve is not None
    place = Market(replace(place.times, load_curve=replace(place.times.load_curve, scenario="all-in-one")), place.assumptions)

    (only,) = compare(place)

    assert only.errors["p50"] == pytest.approx(0, abs=0.001)


def results(folder: Path, place: Market) -> Path:
    """A market's service times as a benchmark would have written them."""
    from pydantic import TypeAdapter

    section = TypeAdapter(type(place.times)).dump_python(place.times, mode="json")
    (folder / "results.json").write_text(json.dumps({"service_times": section}), encoding="utf-8")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["advisor", *map(str, arguments)])
    command.main()


def test_the_report_is_written_with_its_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "RATES", (1000.0,))
    monkeypatch.setattr(command, "CALLS", 6000)
    monkeypatch.setattr(command, "CALLS_OF_GROWTH", 6000)
    table = tmp_path / "one.toml"
    table.write_text(
        'currency = "EUR"\nmeasured_on = "plain"\nload = {growth_per_minute = 0, availability = 0.99}\n'
        'gateway = {machine = "plain", utilisation = 0.5}\n[machines.plain]\nprice_per_hour = 1\nmemory_gib = 24\n'
        "start_seconds = 60\nhours_between_losses = 1000\nspeed = {text_encoder = 1, diffusion = 1, decoder = 1}\n",
        encoding="utf-8",
    )

    folder = results(tmp_path, with_curve((0.01, 0.01, 1.04, 0)))
    run(monkeypatch, folder, "--rate", "0.05", "--p95", "3", "--machines", table, "--out", tmp_path / "out")

    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "advice.md").read_text(encoding="utf-8")
    assert printed.strip() == text.strip()
    assert "**Do not split: the cheapest split (split, one kind of machine) costs " in text
    assert "| split, mixed machines | none that keeps it |" in text
    assert "diffusion: measured once, so that its calls are taken to last equally long" in text
    assert "The largest error is " in text
    document = json.loads((tmp_path / "out" / "advice.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document["verdict"]["split"] is False
    assert [level["rate"] for level in document["growth"]] == [1000.0]
    dearest = document["growth"][0]["advices"]["monoliths"]
    # 1.02 s of a machine each: no plan of any size costs less, and at that size little more.
    assert 1.02 / 3.6 < dearest["cost_low"] < dearest["cost"] < 1.1 * 1.02 / 3.6
    assert f"| 1000 | {dearest['cost']:.3g} * |" in text
    svg = (tmp_path / "out" / "cost.svg").read_text(encoding="utf-8")
    assert "EUR for a thousand pictures" in svg
    assert (tmp_path / "out" / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, results(tmp_path, market({"plain": machine(1.0)})), "--p95", "0.001")

    printed = capsys.readouterr().out
    assert "**No number of these machines keeps 0.001 s: a picture alone takes 0.0" in printed
    assert "The results hold none: how far the simulation is from this machine is not known." in printed


def test_a_refusal_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, tmp_path / "nothing.json")

    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing.json'} cannot be read: No such file or directory\n"


def test_the_committed_example_is_one_of_measured_numbers(root: Path) -> None:
    """Every number of a stage was measured once; its advice is beside it."""
    folder = root / "benchmarks" / "advisor" / "examples" / "sd-v1-5"
    times = read_service_times(folder)
    advice = json.loads((folder / "advice.json").read_text(encoding="utf-8"))

    assert advice["model"] == times.model
    assert advice["measured"] == {"machine": times.machine, "date": times.date}
    assert {level["rate"] for level in advice["growth"]} == set(growth.RATES)


def test_the_ratio_is_encoder_diffusion_decoder(advices: dict[Sort, Advice | None]) -> None:
    split, monolith = advices[Sort.ONE_KIND], advices[Sort.MONOLITH]
    assert split is not None
    assert monolith is not None

    assert ratio(replace(split, plan=split.plan.with_replicas([1, 60, 4]))) == "1 : 60 : 4"
    assert ratio(monolith) == ""


def test_triptych_advise_becomes_the_advisor(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.append(arguments))

    CliRunner().invoke(app, ["advise", "-folder", "--rate", "3", "--machines", "m.toml"], catch_exceptions=False)
    CliRunner().invoke(app, ["advise", "--rate", "3", "--machines", "m.toml", "folder"], catch_exceptions=False)

    assert started == [
        [sys.executable, "-m", "benchmarks.advisor", "--rate=3.0", "--p95=10.0", "--machines=m.toml", "--", "folder"]
    ]
