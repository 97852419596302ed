"""The documentation: its code runs, its links resolve, and its reference pages list what the code has.

Each page is a program. Its `python` and `sh` blocks run in page order, in a folder that looks like a checkout, with
an empty data directory:

- A `python` block whose first line is a file name, such as `# agent.py`, is saved under that name. All other `python`
  blocks of a page are executed in one namespace.
- An `sh` block runs in bash and must succeed. A `text` block right after it is its output, in which `…` stands for any
  text.
- Blocks in lists are indented, and run too.
- `peon` and `alembic` are started in processes that have imported them already, except on the pages in `REAL`.
- `<!-- not run: reason -->` before an `sh` block says why the test leaves it out.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import get_args

import pytest
from helpers.event_strategies import EVENT_CLASSES
from helpers.warm_commands import warm_commands
from sqlalchemy import Column, Table

import peon
import peon.orchestration
from peon import config
from peon.persistence.schema import metadata

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if page.is_file()]
LINKING_PAGES = sorted({*PAGES, *ROOT.glob("*.md")})
REAL = ("README.md", "docs/operations/upgrade.md")
"""The pages on which the installed commands run, each in a new interpreter."""

LONG = (
    *("docs/tutorial/agent-application.md", "docs/operations/upgrade.md", "docs/operations/backup-drill.md"),
    *("docs/operations/datasette.md", "docs/operations/projection-wrong.md", "docs/how-to/check-and-repair.md"),
    *("docs/how-to/export-and-import.md", "docs/how-to/look-at-a-database.md", "docs/how-to/migrate.md"),
    *("docs/how-to/rebuild-and-verify.md", "docs/how-to/send-traces-and-metrics.md"),
)
"""The pages that start many programs: to run them is a slow proof."""

SHELL_SECONDS = 120

NAMED_FROM = [ROOT, ROOT / "src", ROOT / "src" / "peon", ROOT / "src" / "peon" / "persistence", ROOT / "tests"]
"""The folders from which pages name files."""

EXAMPLE_NAMES = ["alembic/versions/011_what_it_does.py"]

BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]+) -->\n(?P=indent))?"
    r"```(?P<language>python|sh)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n+(?P=indent)```text\n(?P<output>.*?)^(?P=indent)```$)?",
    re.MULTILINE | re.DOTALL,
)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
TABLE_ROW = re.compile(r"^\| (.*) \|$", re.MULTILINE)

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is only in a checkout")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def commands() -> Iterator[Path]:
    with warm_commands() as folder:
        yield folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes to the working directory of a page: a copy of a checkout, with an empty data directory."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for shared in ("alembic", "alembic.ini", "examples"):
        (folder / shared).symlink_to(ROOT / shared)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return folder


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (name_of(page) in LONG)) for page in PAGES], ids=name_of
)
def test_code_blocks_run_in_order(
    page: Path, checkout: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    if name_of(page) not in REAL and re.search(r"^ *```sh$", text, re.MULTILINE):
        commands = request.getfixturevalue("commands")
        monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    names: dict[str, object] = {"__name__": "documentation"}
    for block in BLOCK.finditer(text):
        code, line = dedent(block["code"]), text[: block.start("code")].count("\n")
        if block["reason"] is not None:
            assert block["language"] == "sh", f"{page.name}:{line}: every python block runs"
        elif block["language"] == "sh":
            run_in_shell(code, block["output"] and dedent(block["output"]), f"{page.name}:{line}")
        elif file_name := FILE_NAME.match(code):
            (checkout / file_name[1]).write_text(code, encoding="utf-8")
        else:
            exec(compile("\n" * line + code, str(page), "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_block_is_passed_over(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == len(re.findall(r"^ *```(?:python|sh)$", text, re.MULTILINE))


def run_in_shell(commands: str, expected: str | None, place: str) -> None:
    for program in {"bash", *re.findall(r"^(sqlite3) ", commands, re.MULTILINE)}:
        if shutil.which(program) is None:
            pytest.skip(f"{place} needs {program}, which is not installed")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], capture_output=True, text=True, timeout=SHELL_SECONDS
    )
    assert done.returncode == 0, f"{place}: {done.stdout}{done.stderr}"
    if expected is not None:
        pattern = ".*".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, done.stdout, re.DOTALL), f"{place}: the output was\n{done.stdout}"


@pytest.mark.parametrize("page", LINKING_PAGES, ids=name_of)
def test_links_between_pages_resolve(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", prose_of(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor[1:] in anchors_of(linked), f"{target}{anchor}"


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> list[str]:
    """Returns the anchors that GitHub and MyST give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return [anchor_of(heading) for heading in headings]


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_decision_is_in_the_index_of_decisions() -> None:
    explanation = ROOT / "docs" / "explanation"
    indexed = re.findall(r"\]\((decisions/[^)]+)\)", prose_of(explanation / "decisions.md"))
    decisions = [
        f"decisions/{page.name}#{anchor_of(heading)}"
        for page in explanation.glob("decisions/*.md")
        for heading in re.findall(r"^## (.*)$", prose_of(page), re.MULTILINE)
    ]
    assert sorted(set(decisions) - set(indexed)) == []


@pytest.mark.parametrize("page", LINKING_PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|toml|svg|jsonl))`", prose_of(page))
    missing = [name for name in named if not any((folder / name).exists() for folder in NAMED_FROM)]
    assert [name for name in missing if name not in EXAMPLE_NAMES] == []


def test_every_page_is_in_the_navigation() -> None:
    """Sphinx reports this as well; this test needs no Sphinx."""
    listed = {ROOT / "docs" / "index.md"}
    for page in ROOT.glob("docs/**/*.md"):
        text = page.read_text(encoding="utf-8")
        for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for entry in re.findall(r"^[\w/-]+$", toctree, re.MULTILINE):
                listed.add(page.parent / f"{entry}.md")
    assert set(ROOT.glob("docs/**/*.md")) - listed == set()


@pytest.mark.parametrize("module", [peon, peon.orchestration], ids=lambda module: module.__name__)
def test_reference_documents_every_public_name(module: object) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    documented = re.findall(rf"^\.\. auto\w+:: {module.__name__}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(documented) == sorted(set(module.__all__) - {"__version__"})


def test_every_event_is_listed_with_its_fields() -> None:
    listed = [tuple(row.split(" | ")) for row in TABLE_ROW.findall((REFERENCE / "events.md").read_text("utf-8"))]
    expected = [
        (
            f"`{model.__name__}`",
            ", ".join(
                f"`{name}`" + ("" if field.is_required() else "?")
                for name, field in model.model_fields.items()
                if name not in ("type", "occurred_at")
            ),
        )
        for model in EVENT_CLASSES
    ]
    assert listed[1 : len(expected) + 1] == expected  # skips the row of headings


def test_every_setting_is_listed_with_its_variable() -> None:
    rows = [row.split(" | ")[:2] for row in TABLE_ROW.findall((REFERENCE / "configuration.md").read_text("utf-8"))]
    expected = [
        [f"`{section}.{key}`", f"`{config.ENVIRONMENT_PREFIX}{section}__{key}`".upper()]
        for section, model in config.SECTIONS.items()
        for key in model.model_fields
    ]
    assert rows[1 : len(expected) + 1] == expected


def test_every_error_is_listed_with_what_to_do() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", (REFERENCE / "errors.md").read_text("utf-8"), re.MULTILINE)
    public = {name for name in peon.__all__ if is_error(getattr(peon, name))}
    assert sorted(listed) == sorted(public)


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def test_every_table_is_listed_with_its_columns_and_indexes() -> None:
    sections = re.split(r"^### ", (REFERENCE / "schema.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    listed = {}
    for section in sections:
        name = section.partition("\n")[0].strip("`")
        columns = [tuple(row.split(" | ")[:4]) for row in TABLE_ROW.findall(section)][1:]
        indexes = re.findall(r"^- `(\w+)` \(([^)]*)\)$", section, re.MULTILINE)
        listed[name] = (columns, sorted(indexes))
    assert listed == {table.name: (list(columns_of(table)), indexes_of(table)) for table in metadata.sorted_tables}


def columns_of(table: Table) -> Iterator[tuple[str, str, str, str]]:
    for column in table.columns:
        kind = "integer" if column.type.python_type is int else "text"
        yield f"`{column.name}`", kind, key_of(column), "yes" if column.nullable else "no"


def key_of(column: Column[object]) -> str:
    parents = [f"→ `{key.column.table.name}`" for key in column.foreign_keys]
    return ", ".join((["primary"] if column.primary_key else []) + parents) or "-"


def indexes_of(table: Table) -> list[tuple[str, str]]:
    indexes = {str(index.name): index.columns for index in table.indexes}
    return sorted((name, ", ".join(f"`{column.name}`" for column in columns)) for name, columns in indexes.items())


def test_every_content_of_a_message_is_listed_with_its_fields() -> None:
    text = (REFERENCE / "events.md").read_text("utf-8")
    for model in get_args(get_args(peon.orchestration.MessageContent)[0]):
        fields = ", ".join(f"`{field}`" for field in model.model_fields if field != "type")
        assert f"| `{model.__name__}` | {fields} |" in text
