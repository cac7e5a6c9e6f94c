"""The advisor's reader of measured service times."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.advisor import service_times
from benchmarks.advisor.service_times import STAGES, parse_service_times, read_service_times
from triptych.errors import InvalidValue, MalformedRequest

SPREAD = {"median": 1.0, "p10": 0.9, "p90": 1.2, "rounds": 3}
STAGE = {
    "rows_per_picture": 2,
    "seconds": {"any": {"2": SPREAD, "8": {**SPREAD, "median": 1.15}}},
    "cold_start_seconds": 1.0,
    "memory_bytes": 10,
}
SECTION: dict[str, Any] = {
    "model": "m",
    "machine": "a machine",
    "date": "today",
    "measured_by": "a command",
    "requests": [{"size": "8x8", "num_steps": 2, "share": 1.0}],
    "stages": dict.fromkeys(STAGES, STAGE),
    "transfer_seconds": dict.fromkeys(STAGES, SPREAD),
    "gateway": {"seconds": SPREAD, "cold_start_seconds": 1.0, "memory_bytes": 2},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The section with one place of it set; None takes it away."""
    section = copy.deepcopy({**SECTION, "stages": {name: copy.deepcopy(STAGE) for name in STAGES}})
    *steps, last = path.split(".")
    place: Any = section
    for step in steps:
        place = place[int(step) if isinstance(place, list) else step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return section


def test_rows_between_measured_numbers_are_interpolated() -> None:
    stage = parse_service_times(SECTION, "here").stages["diffusion"]

    assert stage.seconds_by_pictures("8x8") == pytest.approx((1.0, 1.05, 1.1, 1.15))


def test_a_single_row_costs_what_the_fewest_measured_do() -> None:
    stage = parse_service_times(changed("stages.decoder.rows_per_picture", 1), "here").stages["decoder"]

    assert stage.seconds_by_pictures("8x8")[:2] == (1.0, 1.0)
    assert len(stage.seconds_by_pictures("8x8")) == 8


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("gateway", None, "missing: gateway"),
        ("stages.decoder", None, "missing: stages.decoder"),
        ("stages.decoder.seconds", None, "missing: stages.decoder.seconds"),
        ("transfer_seconds", {"text_encoder": SPREAD}, "missing: transfer_seconds.diffusion, transfer_seconds.decoder"),
        ("stages.diffusion.seconds", {"16x16": {"1": SPREAD}}, "missing: stages.diffusion.seconds.8x8"),
        ("stages.diffusion.secs", 1, "stages.diffusion.secs: unexpected keyword argument"),
        ("stages.diffusion.seconds.any.2", {**SPREAD, "p10": 2}, "p10, median and p90 are not in order"),
        ("requests", [{"size": "8x8", "num_steps": 2, "share": 0.5}], "the shares of the requests add up to 0.5, not to 1"),
        ("requests", [{"size": "8", "num_steps": 2, "share": 1}], "requests.0.size: string should match pattern"),
        ("gateway.seconds", {**SPREAD, "median": -1}, "gateway.seconds.median: input should be greater than or equal to 0"),
        ("gateway.seconds", {**SPREAD, "p90": float("inf")}, "gateway.seconds.p90: input should be a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(path: str, value: object, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(sentence)) as refused:
        parse_service_times(changed(path, value), "here")

    assert refused.value.message.startswith("here: ")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        ("{", MalformedRequest, "is not JSON"),
        ("[]", InvalidValue, "has no section service_times"),
        (json.dumps({"overhead": []}), InvalidValue, "has no section service_times"),
        (None, MalformedRequest, "cannot be read: No such file or directory"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, error: type[Exception], sentence: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")

    with pytest.raises(error, match=sentence):
        read_service_times(tmp_path)


def test_a_folder_stands_for_its_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"service_times": SECTION, "more": 1}), encoding="utf-8")

    assert read_service_times(tmp_path) == read_service_times(tmp_path / "results.json")


def test_what_other_benchmarks_measured_does_not_suffice_and_is_told(root: Path) -> None:
    """The step batcher's benchmark has diffusion alone: nothing is made up for the other two."""
    (one, *_) = json.loads((root / "benchmarks" / "results" / "batching.json").read_text(encoding="utf-8"))["python"]
    step = one["step_ms"] / 1000
    diffusion = {**STAGE, "seconds": {"128x128": {"2": {"median": step, "p10": step, "p90": step, "rounds": 46}}}}
    section = {**SECTION, "requests": [{"size": "128x128", "num_steps": 25, "share": 1}], "stages": {"diffusion": diffusion}}

    with pytest.raises(InvalidValue, match=r"missing: stages.text_encoder, stages.decoder$"):
        parse_service_times(section, "here")


def test_the_documented_example_is_one() -> None:
    """The schema in the module's docstring, with its abbreviations spelt out."""
    text = (service_times.__doc__ or "").partition("::\n\n")[2].partition("\n\n    SPREAD =")[0]
    text = re.sub(r"(?<=[\]\[{},])  +[^{}\[\]\"\n]+\n", "\n", text)
    text = text.replace("SPREAD", json.dumps(SPREAD)).replace(
        '"decoder": {"rows_per_picture": 1, ...}', f'"decoder": {json.dumps(STAGE)}'
    )
    section = json.loads(text)["service_times"]

    assert parse_service_times(section, "the docstring").model == "vignette"
