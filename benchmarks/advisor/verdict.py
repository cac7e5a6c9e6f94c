"""Should you split? One sentence, which says no where a monolith costs no more, or where the difference is within the noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.advisor.plans import Sort
from benchmarks.advisor.search import Advice


@dataclass(frozen=True)
class Verdict:
    """Whether to split, and why."""

    split: bool
    sentence: str


def judge(advices: Mapping[Sort, Advice | None], *, p95_seconds: float) -> Verdict | None:
    """Compares the monoliths with the cheaper of the two splits; None where nothing keeps the percentile."""
    monolith = advices[Sort.MONOLITH]
    splits = {sort: advice for sort, advice in advices.items() if sort is not Sort.MONOLITH and advice is not None}
    if not splits:
        return Verdict(False, "Do not split: no split keeps the percentile, and monoliths do.") if monolith else None
    sort, split = min(splits.items(), key=lambda item: item[1].cost)
    if monolith is None:
        return Verdict(True, f"Split ({sort}): no machine of the table runs a monolith that keeps {p95_seconds:g} s.")
    if monolith.cost <= split.cost:
        more = f"{split.cost / monolith.cost - 1:.0%} more" if split.cost > monolith.cost else "as much"
        return Verdict(False, f"Do not split: the cheapest split ({sort}) costs {more}.")
    saved = 1 - split.cost / monolith.cost
    surely = 1 - split.cost_high / monolith.cost_low
    if surely <= 0:
        return Verdict(
            False, f"Do not split: the {saved:.1%} that a split ({sort}) would save is within the noise of the simulation."
        )
    return Verdict(True, f"Split ({sort}): it saves {saved:.0%} of the cost, and {surely:.0%} at the least.")
