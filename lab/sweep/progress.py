"""Progress of a sweep: runs, steps, member-steps a second, time left.

A live line on a terminal; elsewhere a line a minute, so that a log shows life.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

PAUSE = 60.0
"""Seconds between two lines where there is no terminal."""

Advance = Callable[[int, int, int], None]
"""advance(member_steps, runs_finished, step): called after each segment, by any thread."""


@contextmanager
def progress_line(*, runs: int, steps: int, done: int, shown: bool | None) -> Iterator[Advance]:
    """A live line on standard error while a sweep runs.

    Args:
        runs: how many runs there are.
        steps: of each run.
        done: member-steps (steps summed over runs) that a store already holds.
        shown: True or False; None is a live line on a terminal, and a line a minute elsewhere.
    """
    if shown is False:
        yield lambda *_: None
        return
    if shown is None and not sys.stderr.isatty():
        yield _lines(runs, runs * steps, done)
        return
    from rich import progress as rich
    from rich.console import Console

    class Speed(rich.ProgressColumn):
        def render(self, task: rich.Task) -> str:
            return f"{task.speed or 0:,.0f} member-steps/s"

    columns = (
        rich.TextColumn(
            "{task.fields[finished]}/{task.fields[runs]} runs · step {task.fields[step]}"
        ),
        rich.BarColumn(bar_width=24),
        rich.TaskProgressColumn(),
        Speed(),
        rich.TextColumn("·"),
        rich.TimeRemainingColumn(compact=True),
        rich.TextColumn("left"),
    )
    with rich.Progress(
        *columns,
        console=Console(stderr=True, force_terminal=shown),
        refresh_per_second=2,
        speed_estimate_period=120,
    ) as bar:
        task = bar.add_task("", total=runs * steps, completed=done, runs=runs, finished=0, step=0)
        finished, one_at_a_time = 0, Lock()

        def advance(member_steps: int, runs_finished: int, step: int) -> None:
            nonlocal finished
            with one_at_a_time:
                finished += runs_finished
                bar.update(task, advance=member_steps, finished=finished, step=step)

        yield advance


def _lines(runs: int, total: int, done: int) -> Advance:
    """Writes a line a minute, after a segment: none at all if the sweep takes less."""
    begun = said = time.monotonic()
    before, finished, one_at_a_time = done, 0, Lock()

    def advance(member_steps: int, runs_finished: int, step: int) -> None:
        nonlocal said, done, finished
        with one_at_a_time:
            finished, done, now = finished + runs_finished, done + member_steps, time.monotonic()
            if now - said < PAUSE:
                return
            said = now
            left = (now - begun) / max(1, done - before) * (total - done)
            print(
                f"{finished}/{runs} runs, step {step:,}: {done / total:.0%}, "
                f"{max(1, round(left / 60))} min left",
                file=sys.stderr,
                flush=True,
            )

    return advance
