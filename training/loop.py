"""One training loop for all networks, on any Keras backend that trains: resumable to the very step.

A batch is a function of its step's number, so that a run that was interrupted sees what it would have seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from training.ahead import in_order
from training.cache import cache_folder, load_arrays, report, save_arrays
from training.pictures import Batch, Batches, batch_of_step


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: Steps in all, those of earlier runs counted in.
        rate: Learning rate after the warm-up, constant until the last fifth, where it falls to a fiftieth along a line.
        seed: Of the batches.
        decay: Share of the run in which the rate falls; 0 keeps it constant, for a run that will go on.
        minutes: Of this run; whichever of steps and minutes is nearer to its end decides what the rate is.
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
    minutes: float | None = None

    def rate_at(self, step: int, seconds: float = 0.0) -> float:
        """The learning rate of a step, so many seconds after the run began."""
        warm = min(1.0, (step + 1) / self.warm_up)
        left = (1 - self.progress(step, seconds)) / max(1 / self.steps, self.decay)
        return self.rate * warm * (min(1.0, max(0.02, left)) if self.decay else 1.0)

    def progress(self, step: int, seconds: float = 0.0) -> float:
        """How much of the run is done, 0..1 and beyond."""
        return max(step / self.steps, seconds / 60 / self.minutes if self.minutes else 0.0)


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
    optimizer: type[keras.optimizers.AdamW] = keras.optimizers.AdamW,
    workers: int = 0,
) -> int:
    """Trains until the schedule's steps or minutes are over, and saves the state.

    Args:
        network: Its call takes a batch and returns each row's loss, (B,).
        batches: The batch of a step. It must be picklable where `workers` is not 0.
        schedule: How long and how fast.
        stage: Names the folder of the state.
        optimizer: AdamW, or one that differs in details.
        workers: Processes that make batches.

    Returns:
        The step reached.
    """
    started = saved = time.time()
    compile_for_training(network, schedule, optimizer)
    path = cache_folder(stage) / "state.npz"
    first = batch_of_step(batches, schedule.seed, 0)
    network.evaluate(first, np.zeros(_rows(first)), verbose=0, batch_size=_rows(first))  # builds the variables
    network.optimizer.build(network.trainable_variables)
    step = load_state(network, path) if path.exists() else 0
    first_step, rows, losses = time.time(), 0, []
    calls = ((batches, schedule.seed, number) for number in range(step, schedule.steps))
    for batch in in_order(batch_of_step, calls, workers=workers):
        network.optimizer.learning_rate = schedule.rate_at(step, time.time() - started)
        network.reset_metrics()
        losses.append(float(network.train_on_batch(batch, np.zeros(_rows(batch)))))
        step, rows = step + 1, rows + _rows(batch)
        over = schedule.progress(step, time.time() - started) >= 1
        if step % schedule.report_every == 0 or over:
            speed = round(rows / (time.time() - first_step), 1)
            report(stage, step=step, loss=round(float(np.mean(losses)), 5), rows_a_second=speed)
            losses = []
        if time.time() - saved > schedule.checkpoint_seconds:
            save_state(network, path, step)
            saved = time.time()
        if over:
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
