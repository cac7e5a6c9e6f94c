"""The tables in the README: `python -m benchmarks.timing.readme FOLDER` writes one from a finished run under benchmarks/results.

There is one for each profile, between two comments, of which the first names profile and folder. A profile without a finished run
has neither table nor comments.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, markdown_table
from benchmarks.timing.folders import RESULTS_FILE
from benchmarks.timing.tables import label, searches_knees
from triptych.cli.console import complain, say
from triptych.errors import StartError

README = RESULTS.parents[1] / "README.md"
BEFORE = "## Where to read on\n"
"""The heading before which a table is put when it comes for the first time."""

_BEGIN, _END = "<!-- benchmarks.timing.readme {profile}: {folder} -->", "<!-- benchmarks.timing.readme ends -->"
_BLOCK = r"<!-- benchmarks\.timing\.readme ({profile}): (\S+) -->\n.*?" + re.escape(_END) + r"\n"


def folders_of(readme: str) -> dict[str, str]:
    """The folders under benchmarks/results whose tables the text has, by profile."""
    return dict(_block("[a-z-]+").findall(readme))


def with_table(readme: str, folder: str, document: Mapping[str, Any]) -> str:
    """The text with the table of a run, instead of the one of that profile that it had, or before the last heading.

    Raises:
        StartError: There is no place for it.
    """
    profile = document["options"]["profile"]
    block = f"{_BEGIN.format(profile=profile, folder=folder)}\n{summary(folder, document)}\n{_END}\n"
    if _block(re.escape(profile)).search(readme):
        return _block(re.escape(profile)).sub(lambda _: block, readme)
    if BEFORE not in readme:
        raise StartError(f"the README has no heading {BEFORE.strip()!r}, before which the table stands")
    return readme.replace(BEFORE, f"{block}\n{BEFORE}")


def _block(profile: str) -> re.Pattern[str]:
    return re.compile(_BLOCK.replace("{profile}", profile), re.DOTALL)


def summary(folder: str, document: Mapping[str, Any]) -> str:
    """What the README says of a run: what one request costs, and the knee."""
    options, section, busy = document["options"], document["sequential"], document["busy"]
    steps = options["extrapolate_to"]
    more = () if steps is None else (f"{steps} steps, extrapolated",)
    header = ("", f"s for {options['batch']}", "p10 to p90", f"over {section['baseline']}", *more, _under_load(options["load"]))
    rows = [
        (label(name), *_cells(subject), *_extrapolated(subject), _requests_a_second(document, name))
        for name, subject in sorted(section["subjects"].items(), key=lambda item: float(item[1]["seconds"]["wall"]["median"]))
    ]
    words = (
        f"`{document['command']}`: {options['model']}, {options['width']}x{options['height']}, {options['num_steps']} steps, on "
        f"{document['machine']}, {document['date']}; others took {busy['median_share_of_others']:.0%} of the machine. All of it: "
        f"[results.md](benchmarks/results/{folder}/results.md), and how to read it: [docs/benchmarks.md](docs/benchmarks.md)."
    )
    return f"{words}\n\n{markdown_table(header, rows)}"


def _cells(subject: Mapping[str, Any]) -> tuple[str, str, str]:
    wall, more = subject["seconds"]["wall"], subject["more_than_baseline"]
    over = "noise" if more["is_noise"] else f"{1000 * more['median']:+.0f} ms"
    return f"{wall['median']:.2f}", f"{wall['p10']:.2f} to {wall['p90']:.2f}", "" if more["low"] == more["high"] == 0 else over


def _extrapolated(subject: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{subject['extrapolated']['wall_seconds']:.0f}",) if "extrapolated" in subject else ()


def _under_load(load: Mapping[str, Any]) -> str:
    return "knee, requests/s" if searches_knees(load) else "requests/s, flooded"


def _requests_a_second(document: Mapping[str, Any], name: str) -> str:
    """The knee, or what is made where none was searched."""
    if (curve := document.get("open_loop", {}).get(name)) is None:
        return ""
    if not searches_knees(document["options"]["load"]):
        return f"{max(load['throughput'] for load in curve['loads']):.3g}"
    return f"{curve['knee_per_second']:.3g}" if curve["knee_per_second"] else ""


def read_document(folder: str, *, results: Path = RESULTS) -> dict[str, Any]:
    """Raises StartError where there is no finished run."""
    path = results / folder / RESULTS_FILE
    if not path.exists():
        raise StartError(f"there is no finished run in benchmarks/results/{folder}")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """See the top."""
    (folder,) = sys.argv[1:]
    name = Path(folder).name
    try:
        text = with_table(README.read_text(encoding="utf-8"), name, read_document(name))
    except StartError as error:
        complain(error.message)
        sys.exit(1)
    README.write_text(text, encoding="utf-8")
    say(f"The README has the table of {name}.")


if __name__ == "__main__":
    main()
