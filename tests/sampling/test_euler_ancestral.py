"""Ancestral Euler."""

from __future__ import annotations

import pytest

from triptych.sampling.euler_ancestral import ancestral_sigmas, euler_ancestral
from triptych.sampling.schedule import ScheduleConfig


@pytest.mark.parametrize(("sigma", "next_sigma"), [(14.6, 9.2), (1.0, 0.999), (0.3, 0.0)])
def test_what_is_stepped_down_and_what_is_added_make_up_the_next_sigma(sigma: float, next_sigma: float) -> None:
    down, up = ancestral_sigmas(sigma, next_sigma)

    assert down**2 + up**2 == pytest.approx(next_sigma**2)
    # The reversed chain's own ratio: its mean keeps next_sigma^2 / sigma^2 of the noise.
    assert down == pytest.approx(next_sigma**2 / sigma)


def test_noise_is_wanted_at_every_step_but_the_last() -> None:
    plan = euler_ancestral(ScheduleConfig(), 4)

    assert [plan.needs_noise(position) for position in range(4)] == [True, True, True, False]
