from __future__ import annotations

import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tiny_models import write_tiny_model
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.weights import Tensors, fill


class Watched:
    """Tensors that know how many of those they gave away are still held when the next is asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self.origin = tensors.origin
        self.held: list[int] = []
        self._tensors = tensors
        self._given: list[weakref.ref[NDArray[Any]]] = []

    def names(self) -> Collection[str]:
        return self._tensors.names()

    def read(self, name: str) -> NDArray[Any]:
        self.held.append(sum(given() is not None for given in self._given))
        array = np.array(self._tensors.read(name))
        self._given.append(weakref.ref(array))
        return array


def test_each_tensor_is_let_go_of_before_the_next_is_read(tmp_path: Path):
    files = DiffusersFolder(write_tiny_model(tmp_path))
    network = load_network(files, Network.UNET)
    with files.tensors(Network.UNET) as tensors:
        watched = Watched(tensors)
        fill(network, watched)
    assert len(watched.held) > 50
    assert max(watched.held) == 0
