"""What a person at a terminal sees, and what a pipe gets: plain lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from triptych.client import Progress as StageProgress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

STAGE_VERBS = {"text_encoder": "encoding", "diffusion": "denoising", "decoder": "decoding"}


def say(line: str) -> None:
    out.print(escape(line))


def complain(sentence: str, lines: tuple[str, ...] = ()) -> None:
    """An error: one sentence, and the log lines that explain it, if there are any."""
    err.print(f"[bold red]error:[/] {escape(sentence)}")
    for line in lines:
        err.print(f"  {escape(line)}", style="dim")


def warn(sentence: str) -> None:
    """Something that the caller should know; the work is done all the same."""
    err.print(f"[bold yellow]warning:[/] {escape(sentence)}")


def log_line(service: str, line: str) -> None:
    """A line that a service logged, behind the service's name."""
    out.print(f"[cyan]{service:<12}[/] | {escape(line)}")


@contextmanager
def shown_progress() -> Iterator[Callable[[StageProgress], None]]:
    """Shows a request's progress as a bar on a terminal, and elsewhere as a line for each stage; on stderr."""
    if not err.is_terminal:
        yield _plain_progress()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("waiting", total=None)

        def show(progress: StageProgress) -> None:
            bar.update(
                task,
                description=STAGE_VERBS.get(progress.stage, progress.stage),
                completed=progress.position or 0,
                total=progress.num_evaluations,
            )

        yield show


def _plain_progress() -> Callable[[StageProgress], None]:
    seen: set[str] = set()

    def show(progress: StageProgress) -> None:
        if progress.stage not in seen:
            seen.add(progress.stage)
            err.print(STAGE_VERBS.get(progress.stage, progress.stage))

    return show


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    with err.status(escape(what)):
        yield


def show_timings(timings: Mapping[str, float]) -> None:
    """A table of where the time went, the total last."""
    total = timings["total_seconds"]
    table = Table("where", "seconds", "share", title="where the time went", title_justify="left", show_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, seconds in timings.items():
        table.add_row(name.removesuffix("_seconds"), f"{seconds:.3f}", f"{seconds / total:.0%}" if total else "")
    out.print(table)


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere the rows alone, a line each, with tabs between the cells."""
    if not out.is_terminal:
        for row in rows:
            out.file.write("\t".join(row) + "\n")
        return
    table = Table(*columns, show_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


@contextmanager
def shown_count(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many are done, and of how many, as a bar on a terminal; elsewhere it is said once. On stderr."""
    if not err.is_terminal:
        said: set[int] = set()

        def show_plainly(done: int, total: int) -> None:
            if total not in said:
                said.add(total)
                err.print(escape(f"{what}: {total}"))

        yield show_plainly
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def shown_download(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many bytes are there, and of how many, as a bar on a terminal, else as a line for each tenth; on stderr."""
    if not err.is_terminal:
        yield _plain_download(what)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_download(what: str) -> Callable[[int, int], None]:
    said = -1

    def show(done: int, total: int) -> None:
        nonlocal said
        if (tenth := 10 * done // max(total, 1)) > said:
            said = tenth
            err.print(escape(f"{what}: {done / 1e6:.1f} of {total / 1e6:.1f} MB"))

    return show
