"""One training loop for all networks, on any Keras backend that trains: resumable to the very step.

A batch is a function of its step's number, so that a run that was interrupted sees what it would have seen.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder, load_arrays, report, save_arrays

Batch = dict[str, np.ndarray]
Batches = Callable[[int, np.random.Generator], Batch]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: Steps in all, those of earlier runs counted in.
        rate: Learning rate after the warm-up, constant until the last fifth, where it falls to a fiftieth along a line.
        seed: Of the batches.
        decay: Share of the steps in which the rate falls; 0 keeps it constant, for a run that will go on.
    """

    steps: int
    rate: float
    warm_up: int = 100
    seed: int = 0
    decay: float = 0.2
    ema: float = 0.999
    weight_decay: float = 0.01
    checkpoint_seconds: float = 120.0
    report_every: int = 100

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warm_up)
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * warm * (min(1.0, max(0.02, left)) if self.decay else 1.0)


def compile_for_training(
    network: keras.Model, schedule: Schedule, optimizer: type[keras.optimizers.AdamW] = keras.optimizers.AdamW
) -> None:
    """Readies a network whose call returns each row's loss, (B,)."""
    network.compile(
        optimizer=optimizer(
            schedule.rate,
            weight_decay=schedule.weight_decay,
            beta_2=0.99,
            global_clipnorm=1.0,
            use_ema=True,
            ema_momentum=schedule.ema,
        ),
        loss=lambda _, losses: ops.mean(losses),
        jit_compile=keras.config.backend() == "jax",
    )


def train(
    network: keras.Model,
    batches: Batches,
    schedule: Schedule,
    stage: str,
    *,
    deadline: float | None = None,
    optimizer: type[keras.optimizers.AdamW] = keras.optimizers.AdamW,
) -> int:
    """Trains until the schedule or the deadline (of `time.time()`) ends, and saves the state; returns the step reached."""
    compile_for_training(network, schedule, optimizer)
    path = cache_folder(stage) / "state.npz"
    first = next(iter(_ahead(batches, schedule.seed, 0, 1)))
    network.evaluate(first, np.zeros(_rows(first)), verbose=0, batch_size=_rows(first))  # builds the variables
    network.optimizer.build(network.trainable_variables)
    step = load_state(network, path) if path.exists() else 0
    started, saved = time.time(), time.time()
    rows, losses = 0, []
    for batch in _ahead(batches, schedule.seed, step, schedule.steps):
        network.optimizer.learning_rate = schedule.rate_at(step)
        network.reset_metrics()
        losses.append(float(network.train_on_batch(batch, np.zeros(_rows(batch)))))
        step, rows = step + 1, rows + _rows(batch)
        if step % schedule.report_every == 0 or step == schedule.steps:
            speed = round(rows / (time.time() - started), 1)
            report(stage, step=step, loss=round(float(np.mean(losses)), 5), rows_a_second=speed)
            losses = []
        if time.time() - saved > schedule.checkpoint_seconds:
            save_state(network, path, step)
            saved = time.time()
        if deadline is not None and time.time() > deadline:
            break
    save_state(network, path, step)
    return step


def save_state(network: keras.Model, path: Any, step: int) -> None:
    """Everything that decides how the training goes on: weights, optimizer, step."""
    arrays = {f"w{i}": ops.convert_to_numpy(v) for i, v in enumerate(network.variables)}
    arrays |= {f"o{i}": ops.convert_to_numpy(v) for i, v in enumerate(network.optimizer.variables)}
    save_arrays(path, arrays | {"step": np.array(step)})


def load_state(network: keras.Model, path: Any) -> int:
    """Takes up a state that `save_state` wrote for the same network; returns its step."""
    arrays = load_arrays(path)
    for prefix, variables in (("w", network.variables), ("o", network.optimizer.variables)):
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"{prefix}{i}"])
    return int(arrays["step"])


def use_averages(network: keras.Model) -> None:
    """Puts the running averages in the place of the weights. The state on disk keeps both."""
    network.optimizer.finalize_variable_values(network.trainable_variables)


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _ahead(batches: Batches, seed: int, start: int, end: int) -> Iterator[Batch]:
    """The batches of steps start..end, made by a thread that keeps a few ahead."""
    ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=6)
    left = threading.Event()

    def work() -> None:
        for step in range(start, end):
            try:
                item: Batch | Exception = batches(step, np.random.default_rng([seed, step]))
            except Exception as error:  # noqa: BLE001  it is raised again where the batch is awaited
                item = error
            while not left.is_set():
                try:
                    ready.put(item, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if left.is_set():
                return

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, end):
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        left.set()
