"""The plots of a run, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.timing.asking import NAMES
from benchmarks.timing.peers import PEERS
from triptych.errors import StartError

Document = Mapping[str, Any]

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")
"""Of the parts, in their order."""


def draw(folder: Path, document: Document) -> None:
    """All plots that the document has numbers for.

    Raises:
        StartError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise StartError("plots need matplotlib, which the extra `bench` brings") from None
    matplotlib.use("Agg")
    # Texts of an SVG stay texts, and its names do not change from one run to the next.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "triptych", "font.size": 9, "figure.dpi": 120})
    makers: Mapping[str, Callable[[Any, Document], None]] = {"sequential": stacked_bars, "open_loop": load_curves}
    for name, make in makers.items():
        if name in document:
            _save(folder, name, make, document)


def _save(folder: Path, name: str, make: Callable[[Any, Document], None], document: Document) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    make(figure, document)
    figure.savefig(folder / f"{name}.png")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def stacked_bars(figure: Any, document: Document) -> None:
    """Where a request's seconds go, a bar for each subject; the whisker is p10 to p90 of the whole."""
    section, options = document["sequential"], document["options"]
    subjects = sorted(section["subjects"].items(), key=lambda item: -float(item[1]["seconds"]["wall"]["median"]))
    axes = figure.subplots()
    labels = [PEERS[name].label if name in PEERS else name for name, _ in subjects]
    left = [0.0] * len(subjects)
    for name, colour in zip(NAMES, _COLOURS, strict=True):
        widths = [subject["seconds"].get(name, {"median": 0.0})["median"] for _, subject in subjects]
        axes.barh(labels, widths, left=left, color=colour, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, (_, subject) in enumerate(subjects):
        wall = subject["seconds"]["wall"]
        axes.plot([wall["p10"], wall["p90"]], [row, row], color="black", linewidth=1)
    pictures = "1 picture" if options["batch"] == 1 else f"{options['batch']} pictures"
    axes.set_xlabel(f"seconds a request of {pictures}, medians of {options['rounds']} rounds")
    axes.set_title(
        f"{options['model']}, {options['width']}x{options['height']}, {options['num_steps']} steps\n{document['machine']}"
    )
    axes.legend(ncols=len(NAMES), loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)


def load_curves(figure: Any, document: Document) -> None:
    """What was made of what came, and how long it took."""
    made, waited = figure.subplots(1, 2)
    for name, curve in document["open_loop"].items():
        loads = [*curve["loads"], *([curve["flood"]] if curve["flood"] else [])]
        offered = [load["offered_rate"] for load in loads]
        made.plot(offered, [load["throughput"] for load in loads], marker="o", label=name)
        waits = [(load["offered_rate"], load["p95_seconds"]) for load in curve["loads"] if load["p95_seconds"] is not None]
        waited.plot([rate for rate, _ in waits], [p95 for _, p95 in waits], marker="o", label=name)
    for axes, words in ((made, "pictures made a second"), (waited, "p95, seconds")):
        axes.set_xlabel("requests a second")
        axes.set_ylabel(words)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.grid(alpha=0.3)
    made.legend(frameon=False)
    figure.suptitle(f"{document['options']['model']}, Poisson arrivals\n{document['machine']}")
