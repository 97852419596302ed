"""The reference page of the command, and the documents that it describes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.migrated_databases import address
from helpers.orchestration_scene import SCENE, THREAD
from helpers.peon_command import run_peon
from sqlalchemy import URL

from peon import Database, export_log
from peon.cli.application import loaded_application
from peon.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command.md"

LOADED = loaded_application()

LINES = [
    "status",
    "status --check",
    "doctor",
    "threads",
    f"show {THREAD}",
    "events",
    "verify",
    "rebuild",
    "compact --yes",
    "vacuum",
    "redact --yes --thread 00000000-0000-0000-0000-000000000003",
    "subscriptions list",
    "subscriptions set-position mails 1 --yes",
    "subscriptions delete mails --yes",
    "settings list",
    "settings set theme 1",
    "settings get theme",
    "settings delete theme --yes",
    "migrate",
    "migrate current",
    "migrate history",
    "export FOLDER/log.jsonl",
    "import FOLDER/other.jsonl --append",
    "copy --to sqlite:///FOLDER/copy.db",
]
"""One use of each command, in an order in which each of them succeeds."""

LINES_WITH_PG_DUMP = ["backup FOLDER/backup", "restore FOLDER/backup --dry-run"]
"""On PostgreSQL, these need pg_dump."""


def functions(group: typer.Typer = LOADED, *path: str) -> Iterator[tuple[str, Any]]:
    for each in group.registered_commands:
        yield " ".join([*path, str(each.name)]), each.callback
    for info in group.registered_groups:
        inner = info.typer_instance
        assert inner is not None
        if inner.registered_callback is not None:
            yield str(info.name), inner.registered_callback.callback
        yield from functions(inner, *path, str(info.name))


@pytest.mark.skipif(not PAGE.parent.is_dir(), reason="the documentation is only in a checkout")
def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run  python -m peon.cli.reference > docs/reference/command.md"


def test_every_command_prints_the_document_that_the_page_describes(migrated_lasting_url: URL, tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    with Database.open(url=migrated_lasting_url) as database:
        export_log(database.engine, tmp_path / "other.jsonl")
        database.events.renew_log_id()
        database.events.append_all(SCENE)
        database.events.durable_subscription("mails").close()
    documents = dict(functions())
    tried = set()
    for line in LINES + LINES_WITH_PG_DUMP:
        words = line.replace("FOLDER", str(tmp_path)).split()
        name = max((each for each in documents if words[: len(each.split())] == each.split()), key=len)
        done = run_peon(*words, "--json", "--url", address(migrated_lasting_url))
        assert (done.code, done.err) == (0, ""), line
        for text in done.out.splitlines() if name == "events" else [done.out]:
            printed = documents[name].document.model_validate_json(text)
            assert printed.model_dump(mode="json") == json.loads(text), line
        tried.add(name)
    assert tried == {name for name, function in documents.items() if function.document is not None}
