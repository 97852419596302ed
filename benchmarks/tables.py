"""Tables of results, printed in a terminal or written as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column is a label; all others are aligned to the right in Markdown."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""

    def for_terminal(self) -> RichTable:
        table = RichTable(*map(escape, self.columns), title=escape(self.title) or None)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def to_markdown(self) -> str:
        alignment = ("---", *("---:" for _ in self.columns[1:]))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.columns, alignment, *self.rows))


def share(part: float) -> str:
    return f"{part:.0%}"


def target_text(target: float | None, reached: bool, sign: str, unit: str = "") -> str:
    """Returns a target with what became of it, or nothing for a figure that has no target."""
    if target is None:
        return ""
    return f"{sign} {target:g}{unit}, {'reached' if reached else 'missed'}"
