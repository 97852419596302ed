"""The bar that a long command shows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Report:
    """Takes the number of things done and to do, and moves the bar.

    Attributes:
        done: The last number of things done.
        total: The last number of things to do.
    """

    def __init__(self, unit: str, move: Callable[[int, int], None] | None = None) -> None:
        self._unit = unit
        self._move = move
        self.done = 0
        self.total = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self._move is not None:
            self._move(done, total)

    @property
    def sentence(self) -> str:
        """How far the work has come, to follow the word "interrupted"."""
        return f" after {self.done:,} of {self.total:,} {self._unit}" if self.total else ""


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")


@contextmanager
def reported(console: Console, what: str, unit: str) -> Iterator[Report]:
    """Shows a bar with a rate and an estimate while the block runs, if the console is a terminal.

    Args:
        what: What is being done.
        unit: What is counted.
    """
    if not console.is_terminal:
        yield Report(unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=0)
        yield Report(unit, lambda done, total: progress.update(task, completed=done, total=total))
