"""The advisor's search: which plan it finds cheapest, and what it respects on the way."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.advisor.machines import DEFAULT, parse_assumptions, read_assumptions
from benchmarks.advisor.plans import Group, Market, Plan, Sort, poisson_quantile
from benchmarks.advisor.search import SEAM, Goal, Judge, advise, quickest
from benchmarks.advisor.service_times import STAGES, parse_service_times
from triptych.errors import InvalidValue, MalformedRequest

GIB = 2**30
EVEN = dict.fromkeys(STAGES, 1.0)


def spread(seconds: float) -> dict[str, float]:
    return {"median": seconds, "p10": seconds, "p90": seconds, "rounds": 1}


def stage(seconds: float, memory_gib: float = 1.0) -> dict[str, Any]:
    return {
        "rows_per_picture": 1,
        "seconds": {"any": {"1": spread(seconds)}},
        "cold_start_seconds": 30,
        "memory_bytes": int(memory_gib * GIB),
    }


def machine(price: float, *, memory_gib: float = 24.0, **speed: float) -> dict[str, Any]:
    return {
        "price_per_hour": price,
        "memory_gib": memory_gib,
        "start_seconds": 60,
        "hours_between_losses": 1000,
        "speed": {**EVEN, **speed},
    }


def market(machines: dict[str, Any], *, memory_gib: float = 1.0, growth: float = 0.0, availability: float = 0.99) -> Market:
    """Stages of 0.1, 4 times 0.2 and 0.1 s on machines of which the first is the measured one and the gateway's."""
    first = next(iter(machines))
    times = {
        "model": "m",
        "machine": "a machine",
        "date": "today",
        "measured_by": "a command",
        "requests": [{"size": "8x8", "num_steps": 4, "share": 1.0}],
        "stages": {
            "text_encoder": stage(0.1, memory_gib),
            "diffusion": stage(0.2, memory_gib),
            "decoder": stage(0.1, memory_gib),
        },
        "transfer_seconds": dict.fromkeys(STAGES, spread(0.01)),
        "gateway": {"seconds": spread(0.01), "cold_start_seconds": 1, "memory_bytes": GIB},
    }
    assumptions = {
        "currency": "USD",
        "measured_on": first,
        "load": {"growth_per_minute": growth, "availability": availability},
        "gateway": {"machine": first, "utilisation": 0.5},
        "machines": machines,
    }
    return Market(parse_service_times(times, "here"), parse_assumptions(assumptions, "here"))


def goal(rate: float, p95_seconds: float = 3.0, calls: int = 6000) -> Goal:
    return Goal(rate=rate, p95_seconds=p95_seconds, calls=calls)


def test_where_one_kind_does_all_alike_the_monolith_is_no_dearer() -> None:
    found = advise(market({"plain": machine(1.0)}), goal(3))

    monolith, split = found[Sort.MONOLITH], found[Sort.ONE_KIND]
    assert monolith is not None
    assert split is not None
    assert found[Sort.MIXED] is None
    assert monolith.cost <= split.cost
    assert split.bottleneck == "diffusion"
    # 3 requests of 1.0 s a second need at least three machines, and the gateway is one more.
    assert monolith.plan.replicas[0] >= 4
    assert monolith.cost == pytest.approx((monolith.plan.replicas[0] + sum(monolith.spares) + 1) * 1.0 / (3 * 3.6))


def test_a_machine_that_is_good_for_diffusion_alone_is_mixed_with_cheap_ones() -> None:
    found = advise(market({"cheap": machine(0.1), "quick": machine(1.0, diffusion=40.0)}), goal(40))

    mixed, monolith, one_kind = found[Sort.MIXED], found[Sort.MONOLITH], found[Sort.ONE_KIND]
    assert mixed is not None
    assert monolith is not None
    assert one_kind is not None
    assert mixed.cost_high < monolith.cost_low
    assert mixed.cost < one_kind.cost
    assert {group.name: group.machine for group in mixed.plan.groups} == {
        "text_encoder": "cheap",
        "diffusion": "quick",
        "decoder": "cheap",
    }
    assert mixed.p95.value <= 3.0
    assert mixed.cost_low <= mixed.cost <= mixed.cost_high


def test_fewer_machines_do_not_keep_the_percentile() -> None:
    """The search ends at the edge: the plan that it found keeps the percentile, one with a replica less does not."""
    place = market({"plain": machine(1.0)})
    found = advise(place, goal(3, p95_seconds=2.0))[Sort.MONOLITH]
    assert found is not None

    judge = Judge(place, goal(3, p95_seconds=2.0), found.plan, simulated=True)
    (count,) = found.plan.replicas
    assert judge.p95(found.plan).value <= 2.0
    assert judge.p95(found.plan.with_replicas([count - 1])).value > 2.0
    assert judge.fitted(found.plan.with_replicas([1]), lambda p95: p95.value <= 2.0) == found.plan
    assert judge.fitted(found.plan.with_replicas([2 * count]), lambda p95: p95.value <= 2.0) == found.plan


def test_a_run_that_ends_before_its_queue_settles_is_not_believed() -> None:
    """At 99.5 % of what four machines can do a short run from empty queues is quick, and what comes of it is not."""
    place = market({"plain": machine(1.0)})
    (plan,) = (each.with_replicas([4]) for each in place.plans() if each.sort is Sort.MONOLITH)

    busy, calm = Judge(place, goal(3.98), plan, simulated=True), Judge(place, goal(2.8), plan, simulated=True)

    assert not busy.is_simulated(plan)
    assert busy.p95(plan).value > 100
    assert calm.is_simulated(plan)


def test_memory_is_respected() -> None:
    """All three together need 30 GiB: only the large machine takes a monolith; each of them alone fits anywhere."""
    place = market({"small": machine(0.1, memory_gib=12), "large": machine(9.0, memory_gib=32)}, memory_gib=10)

    plans = list(place.plans())

    assert [plan.groups[0].machine for plan in plans if plan.sort is Sort.MONOLITH] == ["large"]
    assert len([plan for plan in plans if plan.sort is Sort.ONE_KIND]) == 2
    assert len([plan for plan in plans if plan.sort is Sort.MIXED]) == 6
    assert list(market({"small": machine(0.1, memory_gib=9)}, memory_gib=10).plans()) == []


def test_what_no_number_of_machines_can_is_said() -> None:
    place = market({"plain": machine(1.0)})

    assert quickest(place) == pytest.approx(1.0 + 0.01 + 0.01)
    assert advise(place, goal(1, p95_seconds=0.9)) == dict.fromkeys(Sort)


def test_a_rate_that_is_all_that_so_many_machines_can_do_needs_one_more() -> None:
    """A request is 1.0 s of a machine: at 500 of them the queue of 500 machines would be without bounds."""
    found = advise(market({"plain": machine(1.0)}), goal(500 - 1e-7, p95_seconds=60))[Sort.MONOLITH]

    assert found is not None
    assert found.plan.replicas == (501,)


def test_beyond_the_seam_the_closed_form_answers() -> None:
    found = advise(market({"plain": machine(1.0)}), goal(3000, p95_seconds=2.0))

    for advice in (found[Sort.MONOLITH], found[Sort.ONE_KIND]):
        assert advice is not None
        assert max(advice.plan.replicas) > SEAM
        assert not advice.is_simulated
        assert advice.cost_low < advice.cost < advice.cost_high
        # 1.0 s of machine a request, and 0.02 of the gateway's: nothing can cost less, and at this size little more is needed.
        assert 1.02 / 3.6 < advice.cost < 1.1 * 1.02 / 3.6


def test_a_load_that_grows_needs_machines_before_it_is_there() -> None:
    plan = Plan(sort=Sort.MONOLITH, groups=(Group(stages=STAGES, machine="plain"),))

    # 60 s of the machine and 3 * 30 s of the processes, at 10 % a minute.
    assert market({"plain": machine(1.0)}, growth=0.1).sizing_rate(plan, 2.0) == pytest.approx(2.0 * (1 + 0.1 * 2.5))
    assert market({"plain": machine(1.0)}).sizing_rate(plan, 2.0) == 2.0


def test_lost_machines_have_spares() -> None:
    """10,000 machines that are lost every 1000 h, each gone for 150 s: 0.417 missing on average."""
    group = Group(stages=STAGES, machine="plain", replicas=10_000)
    missing = 10_000 * 150 / 3.6e6

    spare = market({"plain": machine(1.0)}, availability=0.99).spare(group)

    more_missing = 1 - sum(math.exp(-missing) * missing**k / math.factorial(k) for k in range(spare + 1))
    one_more = 1 - sum(math.exp(-missing) * missing**k / math.factorial(k) for k in range(spare))
    assert more_missing <= 0.01 < one_more
    assert market({"plain": machine(1.0)}, availability=0.9).spare(group) < spare


@pytest.mark.parametrize("share", [0.9, 0.999])
def test_the_two_ways_to_a_poisson_quantile_meet(share: float) -> None:
    assert abs(poisson_quantile(300.0, share) - poisson_quantile(300.001, share)) <= 1


def test_the_committed_table_of_machines_is_read() -> None:
    assumptions = read_assumptions(DEFAULT)

    assert {"cpu-2", "t4", "a10", "a100"} <= set(assumptions.machines)
    assert assumptions.speed(assumptions.measured_on, "diffusion") == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"measured_on": "b"}, "measured_on is b, which is none of the machines: a"),
        ({"gateway": {"machine": "c", "utilisation": 0.5}}, "gateway.machine is c, which is none of the machines: a"),
        ({"machines": {"a": {**machine(1.0), "speed": {"diffusion": 1}}}}, "missing: machines.a.speed.text_encoder"),
        ({"machines": {"a": machine(0.0)}}, "machines.a.price_per_hour: input should be greater than 0"),
        ({"machines": {"a": {**machine(1.0), "prize": 1}}}, "machines.a.prize: unexpected keyword argument"),
        ({"machines": {}}, "machines: dictionary should have at least 1 item"),
        ({"load": {"growth_per_minute": 0, "availability": 1}}, "load.availability: input should be less than 1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    table = {
        "currency": "USD",
        "measured_on": "a",
        "load": {"growth_per_minute": 0, "availability": 0.9},
        "gateway": {"machine": "a", "utilisation": 0.5},
        "machines": {"a": machine(1.0)},
    }
    parse_assumptions(copy.deepcopy(table), "here")

    with pytest.raises(InvalidValue, match=re.escape(sentence)):
        parse_assumptions({**table, **change}, "here")


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("currency =", encoding="utf-8")

    with pytest.raises(MalformedRequest, match="is not TOML"):
        read_assumptions(tmp_path / "m.toml")
    with pytest.raises(MalformedRequest, match="cannot be read: No such file"):
        read_assumptions(tmp_path / "n.toml")
