"""How the cost grows with the rate, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.advisor.growth import Level
from benchmarks.advisor.plans import SECONDS_PER_HOUR, Sort
from benchmarks.advisor.search import SEAM, Advice
from triptych.errors import StartError

_COLOURS = {Sort.MONOLITH: "#c44e52", Sort.ONE_KIND: "#4c72b0", Sort.MIXED: "#55a868"}


def check_matplotlib() -> None:
    """Before anything that takes long.

    Raises:
        StartError: It is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise StartError("plots need matplotlib, which the extra `bench` brings") from None
    matplotlib.use("Agg")
    # Texts of an SVG stay texts, and its names do not change from one run to the next.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "triptych", "font.size": 9, "figure.dpi": 120})


def draw(folder: Path, growth: Sequence[Level], *, title: str, currency: str) -> None:
    """cost.png and cost.svg: of an hour and of a thousand pictures, over the rate.

    Raises:
        StartError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    hour, thousand = figure.subplots(1, 2)
    for sort, colour in _COLOURS.items():
        found = [(level.rate, advice) for level in growth if (advice := level.advices[sort])]
        _line(hour, found, sort, colour, per_hour=True)
        _line(thousand, found, sort, colour, per_hour=False)
    hour.set_yscale("log")
    hour.set_ylabel(f"{currency} an hour")
    thousand.set_ylabel(f"{currency} for a thousand pictures")
    thousand.set_ylim(bottom=0)
    for axes in (hour, thousand):
        axes.set_xscale("log")
        axes.set_xlabel("requests a second")
        axes.grid(alpha=0.3)
    hour.legend(frameon=False)
    figure.suptitle(
        f"{title}\nfilled: simulated; hollow: in closed form (over {SEAM} replicas, or very busy); prices and speeds are assumed"
    )
    figure.savefig(folder / "cost.png")
    figure.savefig(folder / "cost.svg", metadata={"Date": None})


def _line(axes: Any, found: Sequence[tuple[float, Advice]], sort: Sort, colour: str, *, per_hour: bool) -> None:
    """One sort of plan; the band is the range of its cost."""
    rates = [rate for rate, _ in found]
    factors = [rate * SECONDS_PER_HOUR / 1000 if per_hour else 1.0 for rate in rates]
    costs = [advice.cost * factor for (_, advice), factor in zip(found, factors, strict=True)]
    lows = [advice.cost_low * factor for (_, advice), factor in zip(found, factors, strict=True)]
    highs = [min(advice.cost_high, 10 * advice.cost) * factor for (_, advice), factor in zip(found, factors, strict=True)]
    axes.plot(rates, costs, color=colour, label=sort.value)
    axes.fill_between(rates, lows, highs, color=colour, alpha=0.15, linewidth=0)
    for rate, cost, (_, advice) in zip(rates, costs, found, strict=True):
        axes.plot([rate], [cost], marker="o", color=colour, markerfacecolor=colour if advice.is_simulated else "white")
