"""Work done ahead of its use, in order: by processes where there are cores for them, by a thread where there are not."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


def drawing_workers() -> int:
    """Processes that draw beside the training: none on a small machine, where the networks need every core."""
    cores = len(os.sched_getaffinity(0))
    return 0 if cores <= 4 else cores - 2


def in_order(function: Callable[..., T], calls: Iterable[tuple[Any, ...]], *, workers: int = 0) -> Iterator[T]:
    """Yields `function(*call)` for each call, in order, a few ahead.

    Args:
        function: Importable by name where `workers` is not 0: it goes to other processes.
        calls: Arguments.
        workers: Processes; 0 is one thread of this process.
    """
    pool: Executor = (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else ThreadPoolExecutor(max_workers=1)
    )
    remaining = iter(calls)
    try:
        waiting: deque[Future[T]] = deque(pool.submit(function, *call) for call in islice(remaining, 4 + 2 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, *call) for call in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
