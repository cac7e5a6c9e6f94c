"""From the journal to results.json, results.md, the plots and the README's table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.advisor.service_times import parse_service_times
from benchmarks.report import RESULTS
from benchmarks.timing.__main__ import make_header, make_parser, make_plan
from benchmarks.timing.asking import NAMES, Parts
from benchmarks.timing.folders import RESULTS_FILE
from benchmarks.timing.journal import Journal
from benchmarks.timing.load import Outcome, summarise
from benchmarks.timing.plan import AGAIN, PARTS, Load, Plan, quick, real_size
from benchmarks.timing.readme import README, folders_of, read_document, summary, with_table
from benchmarks.timing.results import make_document
from benchmarks.timing.scenarios import ALL_IN_ONE, THREE_ENDPOINTS
from benchmarks.timing.tables import report, write_report
from triptych.contract import StageName
from triptych.errors import StartError

STAGES = {
    stage: {
        "weights_digest": f"{number}" * 64,
        "numerics": {"engine": "e", "version": "1", "precision": "float32", "instruction_set": "none", "device": "d"},
    }
    for number, stage in enumerate(StageName)
}
ROUNDS = 4


def small_plan() -> Plan:
    plan = replace(quick(2), scenarios=(ALL_IN_ONE, THREE_ENDPOINTS), peers=("diffusers-float32",), rounds=ROUNDS)
    return replace(plan, extrapolate_to=50, load=replace(plan.load, kinds=plan.load.kinds[:1]))


def parts(*, diffuse: float = 0.5, transfer: float = 0.0) -> dict[str, Any]:
    transfer_of = dict.fromkeys(StageName, transfer / 3) if transfer else {}
    told = Parts(
        encode=0.01,
        diffuse=diffuse,
        decode=0.1,
        transfer=transfer,
        gateway=0.002,
        http=0.004,
        wall=0.116 + diffuse + transfer,
        transfer_of=transfer_of,
    )
    return {**asdict(told), "stages": STAGES, "num_steps": 25}


def load(rate: float, p95: float, why: str = "rate") -> dict[str, Any]:
    outcomes = [Outcome(kind="a", status=200, late=0.001, latency=p95 * share) for share in (0.5, 0.6, 1.0)]
    memory = {"central": {"anonymous": 10**8, "file": 10**7}}
    return {"rate": rate, "why": why, **asdict(summarise(outcomes, offered_rate=rate, seconds=3 / rate, memory=memory))}


def measured() -> dict[str, dict[str, Any]]:
    """Every unit of a run. Three endpoints take 30 ms longer than all in one, in every round."""
    units: dict[str, dict[str, Any]] = {
        "wire/hops": {
            "hops": [
                {
                    "hop": "latents back",
                    "array_bytes": 100,
                    "binary_bytes": 110,
                    "binary_microseconds": 5.0,
                    "base64_bytes": 140,
                    "base64_microseconds": 9.0,
                }
            ]
        },
        "wire/sockets": {"sockets": [{"stage": "decoder", "wire_bytes": 1002, "tensor_bytes": 1000}]},
        "peer/diffusers-float32": {"unavailable": "diffusers is not installed here"},
    }
    for number in range(ROUNDS):
        slow_round = 0.01 * number
        units[f"sequential/all-in-one/{number}"] = parts(diffuse=0.5 + slow_round)
        units[f"sequential/all-in-one{AGAIN}/{number}"] = parts(diffuse=0.5 + slow_round + 0.001 * (-1) ** number)
        units[f"sequential/three-endpoints/{number}"] = parts(diffuse=0.5 + slow_round, transfer=0.03)
    for stage in StageName:
        for pictures in (1, 4):
            seconds = [0.01 * pictures, 0.011 * pictures, 0.012 * pictures]
            told = {"stage": stage, "size": "128x128", "pictures": pictures, "seconds": seconds}
            units[f"service-times/{stage}/128x128/{pictures}"] = told
    units["service-times/memory"] = {"peak_memory_bytes": dict.fromkeys([*StageName, "central"], 10**8)}
    for name in ("all-in-one", "three-endpoints"):
        units[f"open-loop/{name}/alone"] = {"seconds": {"a": 0.2}}
        for rate, p95 in ((1.0, 0.3), (2.0, 0.7), (3.0, 0.9)):
            units[f"open-loop/{name}/rate-{rate:g}"] = load(rate, p95)
        units[f"open-loop/{name}/flood-6"] = load(6.0, 3.0, "flood")
        start = {"ready_seconds": 2.0, "first_picture_seconds": 2.5}
        alone = dict.fromkeys([*StageName, "central"], 1.5) if name == "three-endpoints" else {}
        units[f"cold-start/{name}"] = {"nothing": start, "compiled": [start, start], "alone": alone}
    return units


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(make_header(small_plan(), ["--profile", "quick", "--folder", str(tmp_path)]))
    for number, (unit, told) in enumerate(measured().items()):
        busy = {"seconds": 1.0, "own_cpu_seconds": 1.0, "others_cpu_seconds": 0.0, "others_share": 0.3 if number == 0 else 0.02}
        part = unit.partition("/")[0]
        journal.add({"unit": unit, "part": part, "busy": busy, "is_flagged": number == 0, "measured": told})
    return json.loads(json.dumps(make_document(Journal(tmp_path / "journal.jsonl"))))


def test_where_no_knee_is_searched_what_is_made_is_told(document: dict[str, Any]) -> None:
    assert "Knees, requests a second:" in report(document)
    assert "| 2 |\n" in summary("folder", document)
    options = document["options"] | {"load": document["options"]["load"] | {"most": 1, "first": 2.0}}
    one = document | {"options": options}
    told = report(one)
    assert "Knees" not in told
    assert "They come 2 times as fast as they are made one after the other; no knee was searched." in told
    most = max(load["throughput"] for load in document["open_loop"]["three-endpoints"]["loads"])
    (row,) = (line for line in summary("folder", one).splitlines() if line.startswith("| three-endpoints |"))
    assert f"| {most:.3g} |" in row
    assert "requests/s, flooded" in summary("folder", one)


def test_what_ours_leave_out_is_told(document: dict[str, Any]) -> None:
    assert "cache_interval" not in report(document)
    options = document["options"] | {"cache_interval": 3, "guidance_end": 0.5}
    told = report(document | {"options": options})
    assert "Ours reuse features at cache_interval 3, with guidance from 0 to 0.5 of the steps; peers do neither." in told


def test_steps_that_are_measured_are_not_extrapolated() -> None:
    def plan(*arguments: str) -> Plan:
        return make_plan(make_parser().parse_args(["--profile", "real-size", *arguments]))

    assert plan().extrapolate_to == 25
    assert plan("--steps", "25").extrapolate_to is None
    asked = plan("--cache-interval", "3", "--guidance-end", "0.5").picture(0).body()
    assert (asked["cache_interval"], asked["guidance_start"], asked["guidance_end"]) == (3, 0.0, 0.5)


def test_parts_are_medians(document: dict[str, Any]) -> None:
    seconds = document["sequential"]["subjects"]["three-endpoints"]["seconds"]
    assert seconds["diffuse"]["median"] == pytest.approx(0.515)
    assert seconds["transfer"]["median"] == pytest.approx(0.03)
    assert seconds["wall"]["p90"] == pytest.approx(0.676)
    assert set(seconds) == {*NAMES, "wall"}


def test_differences_are_taken_within_the_rounds(document: dict[str, Any]) -> None:
    subjects = document["sequential"]["subjects"]
    more = subjects["three-endpoints"]["more_than_baseline"]
    assert (more["low"], more["median"], more["high"]) == pytest.approx((0.03, 0.03, 0.03))
    assert not more["is_noise"]
    assert subjects[f"all-in-one{AGAIN}"]["more_than_baseline"]["is_noise"]


def test_more_steps_are_extrapolated_by_the_seconds_of_a_step(document: dict[str, Any]) -> None:
    told = document["sequential"]["subjects"]["all-in-one"]["extrapolated"]
    assert told == {"num_steps": 50, "wall_seconds": pytest.approx(0.116 + 2 * 0.515)}


def test_the_knee_is_below_what_was_too_much(document: dict[str, Any]) -> None:
    curve = document["open_loop"]["all-in-one"]
    assert curve["knee_per_second"] == 2.0
    assert [each["kept_up"] for each in curve["loads"]] == [True, True, False]
    assert curve["flood"]["rate"] == 6.0


def test_the_advisor_reads_its_section(document: dict[str, Any]) -> None:
    times = parse_service_times(document["service_times"], "here")
    assert times.stages["diffusion"].seconds["128x128"][8].median == pytest.approx(0.044)
    assert times.stages["decoder"].seconds["128x128"][4].median == pytest.approx(0.044)
    assert times.stages["text_encoder"].seconds["any"][2].median == pytest.approx(0.011)
    assert times.transfer_seconds["decoder"].median == pytest.approx(0.01)
    assert times.gateway.cold_start_seconds == 1.5
    assert times.load_curve is not None
    assert [point.offered_per_second for point in times.load_curve.points] == [1.0, 2.0, 3.0]


def test_no_advice_comes_of_a_part_of_a_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(make_header(small_plan(), []))
    busy = {"seconds": 1.0, "others_share": 0.0}
    for unit, told in measured().items():
        if unit.startswith("sequential/"):
            journal.add({"unit": unit, "part": "sequential", "busy": busy, "is_flagged": False, "measured": told})
    document = make_document(journal)
    assert "service_times" not in document
    assert "open_loop" not in document
    assert "## Under load" not in report(document)


def test_what_is_too_short_for_the_clocks_is_not_called_busy(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin(make_header(small_plan(), []))
    for number, seconds in enumerate((1.0, 0.01)):
        busy = {"seconds": seconds, "others_share": 0.02 if seconds == 1.0 else 1.0}
        told = {"unit": f"sequential/all-in-one/{number}", "part": "sequential", "measured": parts()}
        journal.add({**told, "busy": busy, "is_flagged": seconds < 1.0})
    busy = make_document(journal)["busy"]
    assert (busy["units"], busy["flagged_units"], busy["largest_share_of_others"]) == (1, [], 0.02)


def test_the_report_says_what_was_not_measured_and_how_busy_it_was(document: dict[str, Any]) -> None:
    text = report(document)
    assert "Not measured: diffusers, float32: diffusers is not installed here." in text
    assert "1 units are flagged" in text
    assert "+30.0 ms (+30.0 to +30.0)" in text
    assert "noise" in text
    assert "- three-endpoints: 2; " in text
    assert "Extrapolated, not measured" in text


def test_where_things_lie_is_not_told(document: dict[str, Any], tmp_path: Path) -> None:
    assert str(tmp_path.parent) not in json.dumps(document)


def test_tokens_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_STAGE_TOKEN", "secret")
    monkeypatch.setenv("TRIPTYCH_PRECISION", "float32")
    settings = make_header(small_plan(), [])["settings"]
    assert settings["TRIPTYCH_STAGE_TOKEN"] == "set"
    assert settings["TRIPTYCH_PRECISION"] == "float32"


def test_a_finished_folder_has_everything(document: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    folder.mkdir()
    write_report(folder, document)
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "results.md",
        *(f"{plot}.{kind}" for plot in ("sequential", "open_loop") for kind in ("png", "svg")),
    }
    assert json.loads((folder / RESULTS_FILE).read_text()) == document
    assert "three-endpoints" in (folder / "sequential.svg").read_text()


# The README


def test_the_table_is_put_in_and_exchanged(document: dict[str, Any]) -> None:
    text = "# Title\n\nwords\n\n## Where to read on\n\nlinks\n"
    first = with_table(text, "one", document)
    assert folders_of(first) == {"quick": "one"}
    assert first.index("three-endpoints") < first.index("## Where to read on")
    second = with_table(first, "two", document)
    assert folders_of(second) == {"quick": "two"}
    assert second.count("| three-endpoints |") == 1
    assert with_table(second, "two", document) == second
    both = with_table(second, "three", document | {"options": document["options"] | {"profile": "real-size"}})
    assert folders_of(both) == {"quick": "two", "real-size": "three"}
    assert with_table(both, "two", document) == both
    with pytest.raises(StartError, match="no heading"):
        with_table("# Title\n", "one", document)


def test_the_readme_has_the_tables_of_the_committed_runs() -> None:
    """And none of a profile of which no run is committed."""
    text = README.read_text(encoding="utf-8")
    folders = folders_of(text)
    assert text.count("<!-- benchmarks.timing.readme") == 2 * len(folders)
    committed = {json.loads(path.read_text(encoding="utf-8"))["options"]["profile"] for path in RESULTS.glob(f"*/{RESULTS_FILE}")}
    assert folders.keys() == committed, "run `python -m benchmarks.timing.readme FOLDER`"
    for folder in folders.values():
        wanted = with_table(text, folder, read_document(folder))
        assert text == wanted, f"run `python -m benchmarks.timing.readme {folder}`"


# The command line


def test_the_command_line_changes_the_profile() -> None:
    told = "--parts sequential --scenarios three-endpoints all-in-one --peers --rounds 2 --threads 3 --loads 1 --flood 0"
    plan = make_plan(make_parser().parse_args(told.split()))
    assert (plan.parts, plan.peers, plan.rounds, plan.threads) == (("sequential",), (), 2, 3)
    assert [scenario.name for scenario in plan.scenarios] == ["three-endpoints", "all-in-one"]
    assert plan.load == replace(quick(3).load, most=1, flood_requests=0)


def test_a_scenario_is_given_by_places() -> None:
    plan = make_plan(make_parser().parse_args(["--diffusion", "http://10.0.0.7:8002", "--decoder", "remote"]))
    given = plan.scenarios[-1]
    assert (given.name, *given.places.values()) == ("given", "local", "http://10.0.0.7:8002", "remote")
    assert not given.is_ours_alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--diffusion", "elsewhere"], "local`, `remote` or an address"),
        (["--scenarios", "two-endpoints"], "no scenario 'two-endpoints'"),
        (["--scenarios", "replicas", "--threads", "1"], "no scenario 'replicas' for 1 threads"),
    ],
)
def test_impossible_scenarios_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(StartError, match=words):
        make_plan(make_parser().parse_args(arguments))


@pytest.mark.parametrize("plan", [quick(2), real_size(2)])
def test_a_profile_can_be_carried_out(plan: Plan) -> None:
    assert isinstance(plan.load, Load)
    assert set(plan.parts) == set(PARTS)
    assert all(scenario.replicas <= plan.threads for scenario in plan.scenarios)
    assert plan.sizes[0] == (plan.width, plan.height)
