"""What the decoder alone is taught by."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from training.decoder import edge_energy


def edge(*ramp: float, at: int = 16) -> np.ndarray:
    """Black, then a ramp, then white, (1, 32, 32, 3)."""
    row = np.full(32, -1.0, np.float32)
    row[at : at + len(ramp)], row[at + len(ramp) :] = ramp, 1.0
    return np.broadcast_to(row[None, None, :, None], (1, 32, 32, 3)).copy()


def test_a_blurred_edge_lacks_energy_and_one_a_pixel_off_hardly_does() -> None:
    places = range(12, 20)
    sharp = np.concatenate([edge(0.0, at=place) for place in places])
    blurred = np.concatenate([edge(-0.6, -0.2, 0.2, 0.6, at=place - 2) for place in places])
    moved = np.concatenate([edge(0.0, at=place + 1) for place in places])
    lost, off = (float(np.mean(ops.convert_to_numpy(edge_energy(x, sharp)))) for x in (blurred, moved))
    assert lost > 2 * off > 0
    assert np.abs(moved - sharp).mean() > np.abs(blurred - sharp).mean()
    assert not ops.convert_to_numpy(edge_energy(sharp, sharp)).any()


def test_every_row_and_both_directions_count() -> None:
    flat, across = np.zeros((1, 32, 32, 3), np.float32), edge(0.0)
    both = np.concatenate([flat, across, np.swapaxes(across, 1, 2)])
    none, right, down = ops.convert_to_numpy(edge_energy(both, np.zeros_like(both)))
    assert none == 0.0
    assert right == pytest.approx(down)
    assert right > 0.05
