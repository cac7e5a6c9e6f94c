"""The benchmark of reused features compares each picture with the same one without reuse, in the same round."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.reuse import Made, compared, psnr, rotated, summary, ways_of


def made(seconds: float, level: int) -> Made:
    return Made(seconds=seconds, image=np.full((2, 2, 3), level, np.uint8))


def test_every_interval_comes_first_as_often_as_the_others() -> None:
    rounds = [rotated(["1", "2", "5"], number) for number in range(6)]
    assert [each[0] for each in rounds] == ["1", "2", "5"] * 2
    assert all(sorted(each) == ["1", "2", "5"] for each in rounds)


def test_a_guidance_interval_is_tried_beside_every_interval_of_reuse() -> None:
    assert ways_of([3], 0, 1) == {"1": {"cache_interval": 1}, "3": {"cache_interval": 3}}
    guided = {"guidance_start": 0.2, "guidance_end": 0.8}
    assert ways_of([3], 0.2, 0.8) == {
        "1": {"cache_interval": 1},
        "3": {"cache_interval": 3},
        "1, guidance from 0.2 to 0.8": {"cache_interval": 1, **guided},
        "3, guidance from 0.2 to 0.8": {"cache_interval": 3, **guided},
    }


def test_likeness_is_in_decibels_of_the_whole_range() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0
    assert psnr(black, black) == math.inf
    assert psnr(black, np.full_like(black, 1)) == pytest.approx(48.13, abs=0.01)


def test_what_slows_a_round_down_falls_out() -> None:
    numbers = compared([(made(2.0, 0), made(1.0, 1)), (made(40.0, 0), made(20.0, 1)), (made(2.0, 0), made(1.0, 255))])
    assert numbers == {"seconds": 1.0, "times_as_fast": 2.0, "psnr": 48.13, "worst_psnr": 0.0}


def test_the_summary_has_a_line_for_each_interval() -> None:
    told = {"command": "x", "machine": "y", "load_before": 0, "date": "z", "python": "3", "versions": {"numpy": "2"}}
    settings = {"model": "m", "size": "8x8", "pictures": 1, "sampler": "ddim", "num_steps": 4, "guidance_scale": 2.0}
    pairs = {"1": (made(2.0, 0), made(2.0, 0)), "3": (made(2.0, 0), made(1.0, 1))}
    text = summary({**told, **settings, "intervals": {n: compared([pair]) for n, pair in pairs.items()}})
    assert "| 1 | 2.000 | 1.00 | the same | the same |" in text
    assert "| 3 | 1.000 | 2.00 | 48.1 | 48.1 |" in text
