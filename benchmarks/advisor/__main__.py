"""`python -m benchmarks.advisor RESULTS`, which `triptych advise` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.advisor.check import compare
from benchmarks.advisor.growth import Level, grow
from benchmarks.advisor.machines import DEFAULT, read_assumptions
from benchmarks.advisor.plans import Market
from benchmarks.advisor.plot import check_matplotlib, draw
from benchmarks.advisor.report import Report, as_markdown, write
from benchmarks.advisor.search import Goal, advise, quickest
from benchmarks.advisor.service_times import read_service_times
from triptych.errors import InvalidValue, TriptychError

CALLS, CALLS_OF_GROWTH = 100_000, 40_000
"""Of networks, in one simulation: for the rate that was asked for, and for each level of the growth."""


def main() -> None:
    """Should you split, and how? Prints Markdown; with --out also writes it, and how cost grows to 10,000 requests a second."""
    arguments = _arguments()
    try:
        _advise(arguments)
    except TriptychError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advisor", description=main.__doc__)
    parser.add_argument("results", type=Path, help="folder of a benchmark's results, or its results.json")
    parser.add_argument("--rate", type=_positive, default=1.0, help="requests a second (default 1)")
    parser.add_argument(
        "--p95", type=_positive, default=10.0, help="seconds that 95 of 100 requests may take at most (default 10)"
    )
    parser.add_argument("--machines", type=Path, default=DEFAULT, help="table of machines")
    parser.add_argument("--out", type=Path, help="folder for advice.md, advice.json, cost.png and cost.svg")
    return parser.parse_args()


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _advise(arguments: argparse.Namespace) -> None:
    market = Market(read_service_times(arguments.results), read_assumptions(arguments.machines))
    goal = Goal(rate=arguments.rate, p95_seconds=arguments.p95, calls=CALLS)
    if not any(market.plans()):
        raise InvalidValue("none of the machines has the memory that a stage needs")
    if arguments.out:
        check_matplotlib()
    _tell(f"looking for plans at {goal.rate:g} requests a second")
    report = Report(
        results=str(arguments.results),
        machines=arguments.machines.name,
        market=market,
        goal=goal,
        quickest_seconds=quickest(market),
        advices=advise(market, goal),
        compared=list(compare(market)),
        growth=_growth(market, goal) if arguments.out else (),
    )
    print(as_markdown(report))
    if arguments.out:
        write(report, arguments.out)
        title = f"{market.times.model}, p95 within {goal.p95_seconds:g} s"
        draw(arguments.out, report.growth, title=title, currency=market.assumptions.currency)
        _tell(f"written to {arguments.out}")


def _growth(market: Market, goal: Goal) -> list[Level]:
    levels = []
    for level in grow(market, goal.p95_seconds, calls=CALLS_OF_GROWTH):
        _tell(f"{level.rate:g} requests a second: done")
        levels.append(level)
    return levels


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
