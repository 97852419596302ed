"""The results of the campaigns, and the page that shows them.

A campaign is a slow test that breaks things at random, very often. With the environment variable RECORD_CAMPAIGNS, it
writes its result to tests/data/campaigns; with RECORD_CAMPAIGNS=add, some campaigns continue the result that is there,
so that a long one can be run in portions. `python tests/helpers/campaigns.py` makes the page from the results.
"""

import os
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill

from pydantic import BaseModel

TESTS = Path(__file__).parents[1]
RESULTS = TESTS / "data" / "campaigns"
PAGE = TESTS.parent / "docs" / "explanation" / "campaigns.md"

INTRODUCTION = """\
<!-- Made by tests/helpers/campaigns.py from the results in tests/data/campaigns. -->
# Campaigns

A campaign breaks things at random, very often, and then compares the database with what the application was told.
This page shows what was tried in the runs that were recorded last, how often, and what came of it. A run fails at the
first difference. The `slow` session of CI repeats each campaign with few rounds. These commands run five times as many,
and write this page again:

<!-- not run: it takes half an hour -->
```sh
export RECORD_CAMPAIGNS=1 CAMPAIGN_FACTOR=5
python -m pytest -m slow -n 0 tests/campaigns
python tests/helpers/campaigns.py
```

With `RECORD_CAMPAIGNS=add`, a run of `test_kills.py` adds its rounds to those on this page.
"""


class Figure(BaseModel):
    """A line of a result."""

    name: str
    value: str | int | float


class CampaignResult(BaseModel):
    """What a campaign has tried, how often, and what came of it."""

    title: str
    what: str
    rounds: int
    results: list[Figure]


def rounds(few: int) -> int:
    """Returns how often a campaign is repeated: `few` in CI, a multiple of that for the page."""
    return few * int(os.environ.get("CAMPAIGN_FACTOR", "1"))


PATIENCE = rounds(900)
"""Seconds that a campaign may take."""


def so_far(name: str, what: str) -> tuple[int, Counter[str]]:
    """Returns the rounds and the counts of earlier runs, if this one is added to them and does the same."""
    file = RESULTS / f"{name}.json"
    if os.environ.get("RECORD_CAMPAIGNS") != "add" or not file.exists():
        return 0, Counter()
    found = CampaignResult.model_validate_json(file.read_bytes())
    if found.what != _in_one_line(what):
        return 0, Counter()
    return found.rounds, Counter({each.name: each.value for each in found.results if isinstance(each.value, int)})


def record(name: str, title: str, what: str, rounds: int, figures: dict[str, str | int]) -> None:
    """Writes the result to its file, if the run is meant for the page."""
    if os.environ.get("RECORD_CAMPAIGNS"):
        figures |= {
            "Where": f"{platform.system()}, Python {platform.python_version()}",
            "When": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        results = [Figure(name=name, value=value) for name, value in figures.items()]
        result = CampaignResult(title=title, what=_in_one_line(what), rounds=rounds, results=results)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _in_one_line(what: str) -> str:
    return " ".join(what.split())


def page() -> str:
    found = [CampaignResult.model_validate_json(file.read_bytes()) for file in sorted(RESULTS.glob("*.json"))]
    return "\n".join([INTRODUCTION, *map(_section, found)])


def _section(result: CampaignResult) -> str:
    rows = [f"| {figure.name} | {_shown(figure.value)} |" for figure in result.results]
    return "\n".join(
        [
            f"## {result.title}",
            "",
            fill(result.what, 120),
            "",
            "| | |",
            "|---|---|",
            f"| Rounds | {result.rounds:,} |",
            *rows,
            "",
        ]
    )


def _shown(value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
