"""The Python in the documentation is run as it stands."""

import re
from pathlib import Path

import pytest
from helpers.event_strategies import EVENT_CLASSES

RUN = ("guide", "events", "projections", "backends", "writers", "subscriptions", "async")
ROOT = Path(__file__).parents[1]
NAMES = ("README.md", *(f"docs/{page}.md" for page in RUN))
PAGES = [ROOT / name for name in NAMES if (ROOT / name).is_file()]

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not here: no checkout")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run_in_order(page: Path) -> None:
    blocks = list(re.finditer(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    assert blocks
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        line = page.read_text(encoding="utf-8")[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(page), "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in [heading.lower().replace(" ", "-") for heading in headings]


def test_every_event_is_listed_with_its_fields() -> None:
    listed = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "events.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    expected = [
        (
            model.__name__,
            ", ".join(
                f"`{name}`" + ("" if field.is_required() else "?")
                for name, field in model.model_fields.items()
                if name not in ("type", "occurred_at")
            ),
        )
        for model in EVENT_CLASSES
    ]
    assert listed[: len(expected)] == expected
