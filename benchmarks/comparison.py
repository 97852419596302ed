"""Speed as a ratio to a baseline that was measured in the same rounds.

The best round of each side counts: rounds are short, and other work on the machine can only make one slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tables import Table, target_text
from workload import seconds

Side = Literal["baseline", "peon"]


@dataclass(frozen=True)
class Comparison:
    """Events a second of the baseline and of peon.

    Attributes:
        target: The lowest ratio that we accept; `None` where there is no target.
    """

    name: str
    baseline: float
    peon: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.peon / self.baseline

    @property
    def reached(self) -> bool:
        # Compared as it is shown, so that the page never shows the target itself as missed.
        return self.target is None or round(self.ratio, 2) >= self.target


class BestRates:
    """Keeps the highest rate of each side of each measurement."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, Side], float] = {}

    def measure(self, name: str, side: Side, events: int, work: Callable[[], object]) -> None:
        """Runs `work`, which handles so many events."""
        rate = events / seconds(work)
        self._rates[name, side] = max(self._rates.get((name, side), 0.0), rate)

    def comparison(self, name: str, target: float | None = None, baseline: str | None = None) -> Comparison:
        """Returns both sides of a measurement.

        Args:
            baseline: The measurement of peon that is the baseline, for those without one of their own.
        """
        theirs = self._rates[baseline, "peon"] if baseline else self._rates[name, "baseline"]
        return Comparison(name, theirs, self._rates[name, "peon"], target)


def comparison_table(comparisons: Sequence[Comparison], baseline: str, title: str = "") -> Table:
    rows = [
        (
            result.name,
            f"{result.baseline:,.0f}",
            f"{result.peon:,.0f}",
            f"{result.ratio:.2f}",
            target_text(result.target, result.reached, "≥"),
        )
        for result in comparisons
    ]
    return Table(("events a second", baseline, "peon", "ratio", "target"), rows, title)
