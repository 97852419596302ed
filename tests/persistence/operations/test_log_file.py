"""A log that is exported and imported has every row unchanged; a cut or altered file is refused."""

import gzip
import io
import json
import os
import re
import sqlite3
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.postgresql_schemas import MigratedSchemas, in_schema
from helpers.streamed_text import NO_AGE, SCENE, whole
from sqlalchemy import URL, insert, select, text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import (
    CommandConflict,
    CommandEventsMerged,
    Database,
    EventQuery,
    PersistenceError,
    SchemaOutOfDate,
    StoreUnavailable,
    UndecodableEvent,
    create_engine,
    export_log,
    import_log,
)
from peon.persistence.log import pages
from peon.persistence.migrations import revisions
from peon.persistence.operations.copying import appending, importing
from peon.persistence.schema import command_receipts, events

PROJECT = UUID(int=1)
COMMAND = UUID(int=2)
EMPTY_COMMAND = UUID(int=3)

PAYLOADS = [
    "",
    "{",
    "null",
    ' {"a" : 1,  "a":2} ',
    '{"a":1e400,"b":"\\ud800","c":"\\u0000"}',
    '{"a":NaN}',
    '{\n"a": "pretty"}',
    '"\u2028 🌊 \\" \\\\"',
    'not JSON: \t\r\n\x7f "quoted" \\x00 \'',
    "[" * 5_000,
    '{"a":"' + "x" * 5_000 + '"}',
]
WITH_NUL = ["\0", '{"a":"\0"}']


@pytest.fixture
def source(database: Database) -> Database:
    """A log with commands and hostile payloads on each kind of database."""
    renamed = [ProjectRenamed(project_id=PROJECT, name=name) for name in "ab"]
    database.events.append_all([ProjectCreated(project_id=PROJECT, name="Gezeiten 🌊", path="/tide-table")])
    database.events.append_all(renamed, command_id=COMMAND)
    database.events.append_all([], command_id=EMPTY_COMMAND)
    on_sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.begin() as connection:
        for number, payload in enumerate(PAYLOADS + (WITH_NUL if on_sqlite else []), 10):  # after a gap
            connection.execute(insert(events).values((number, 'Un"known', payload, "any\ntime")))
    return database


@pytest.fixture(params=["file", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "file":
        url = URL.create("sqlite", database=str(tmp_path / "target.db"))
        url_of_migrated = Path(request.getfixturevalue("migrated_file"))
        (tmp_path / "target.db").write_bytes(url_of_migrated.read_bytes())
    else:
        # Of the two schemas, `source` may use the other one.
        url = request.getfixturevalue("other_postgresql_url")
    with Database.open(url=url) as opened:
        opened.events.renew_log_id()
        yield opened


@pytest.fixture
def other_postgresql_url(
    postgresql_server: URL, migrated_schemas: MigratedSchemas, statements_for_postgresql: str
) -> Iterator[URL]:
    schema = migrated_schemas.take(statements_for_postgresql)
    yield in_schema(postgresql_server, schema)
    migrated_schemas.give_back(schema)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def rows_of(database: Database) -> list[list[Any]]:
    with database.engine.connect() as connection:
        return [sorted(map(tuple, connection.execute(select(table)))) for table in (events, command_receipts)]


def exported(database: Database) -> bytes:
    stream = io.BytesIO()
    export_log(database.engine, stream)
    return stream.getvalue()


@pytest.fixture
def pair(open_empty_memory: Callable[..., Database]) -> tuple[Database, Database]:
    """Two empty logs without projections."""
    source, target = (open_empty_memory(name, maintain_projections=False) for name in ("source", "target"))
    target.events.renew_log_id()  # both were copied from one file
    return source, target


def renamed(*names: str) -> list[Any]:
    return [ProjectRenamed(project_id=PROJECT, name=name) for name in names]


def test_every_row_is_imported_unchanged(source: Database, target: Database, file: Path) -> None:
    if source.engine.dialect.name == "sqlite" and target.engine.dialect.name == "postgresql":
        return  # see the test of NUL characters
    report = export_log(source.engine, file)

    assert report[:3] == (len(rows_of(source)[0]), 2, rows_of(source)[0][-1][0])
    assert import_log(target.engine, file) == (report.events, 0, 2, report.last_sequence)
    assert rows_of(target) == rows_of(source)
    target.projections.catch_up()
    assert target.read_model.projects() == source.read_model.projects() != []
    # The copy knows the command, and continues after the last event.
    assert target.events.append_all(renamed("a", "b"), command_id=COMMAND)[0].sequence == 2
    assert target.events.append_all(renamed("c"))[0].sequence == report.last_sequence + 1
    assert target.events.log_id() != source.events.log_id()


def test_each_line_is_json(source: Database) -> None:
    header, *lines, trailer = exported(source).decode().split("\n")[:-1]
    assert {**json.loads(header), "log_id": None} == {
        "format": "peon-log",
        "version": 1,
        "peon": "0.1.0",
        "revision": revisions()[-1],
        "log_id": None,
        "gaps": 0,
        "events": len(lines) - 2,
        "commands": 2,
        "first_sequence": 1,
        "last_sequence": json.loads(lines[-1])["sequence"],
    }
    assert [*map(json.loads, lines)][1:5] == [
        {**json.loads(lines[1]), "sequence": 1, "event_type": "ProjectCreated"},
        {**json.loads(lines[2]), "command_id": str(COMMAND), "first_sequence": 2, "events": 2},
        {**json.loads(lines[3]), "sequence": 2},
        {**json.loads(lines[4]), "sequence": 3},
    ]
    assert json.loads(lines[1])["payload"]["name"] == "Gezeiten 🌊"
    assert '"payload": {"a" : 1,  "a":2} }' in lines[8]
    assert lines[5].endswith('"stored_at":"any\\ntime","event_type":"Un\\"known","payload_text":""}')
    assert [*json.loads(trailer)] == ["events", "commands", "sha256"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_is_private_and_complete(
    log_alone: Database, pair: tuple[Database, Database], tmp_path: Path, suffix: str
) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    log_alone.events.append_all(renamed("a"))
    file = tmp_path / f"log.jsonl{suffix}"
    export_log(log_alone.engine, file)
    before = file.read_bytes()

    with pytest.raises(PersistenceError, match=r"exists: name another file"):
        export_log(log_alone.engine, file)
    assert file.read_bytes() == before
    export_log(log_alone.engine, file, replace=True)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if "log" in path.name] == [file.name]
    assert before.startswith({"": b'{"format"', ".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}[suffix])
    assert import_log(pair[1].engine, file).events == 1


def test_an_interrupted_export_leaves_no_file(log_alone: Database, tmp_path: Path, file: Path) -> None:
    log_alone.events.append_all(renamed("a"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_log(log_alone.engine, file, progress=interrupt)
    assert not [*tmp_path.glob("log*")]


def test_values_that_are_not_text_are_imported_into_a_file(
    migrated_sqlite_url: URL, migrated_postgresql_url: URL, tmp_path: Path, file: Path
) -> None:
    path = str(migrated_sqlite_url.database)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO events VALUES (1, 'a', x'ff00', 'c')")
        connection.execute("INSERT INTO events VALUES (2, 'a', CAST(x'ff61' AS TEXT), CAST(x'ff' AS TEXT))")
        connection.execute("INSERT INTO events VALUES (3, x'', CAST(x'80' AS TEXT), x'62')")
        connection.execute("INSERT INTO events VALUES (4, 'a', 'b', 'c')")
    query = "SELECT sequence, typeof(event_type), typeof(payload), hex(event_type), hex(payload), hex(stored_at) "
    query += "FROM events"
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as source:
        export_log(source.engine, file)
        with source.engine.connect() as reading:
            expected = reading.exec_driver_sql(query).all()
    lines = file.read_text().split("\n")
    assert f'"payload_text":{{"blob":"{b64encode(bytes([255, 0])).decode()}"}}' in lines[1]
    assert f'"payload_text":{{"text":"{b64encode(bytes([255, 97])).decode()}"}}' in lines[2]

    for url, options in [(migrated_postgresql_url, {}), (f"sqlite:///{tmp_path}/append.db", {"append": True})]:
        with Database.open(url=url) as target, pytest.raises(PersistenceError, match="event 1 has a value that is not"):
            import_log(target.engine, file, **options)
    with Database.open(url=f"sqlite:///{tmp_path}/other.db", maintain_projections=False) as target:
        import_log(target.engine, file)
        with target.engine.connect() as reading:
            assert reading.exec_driver_sql(query).all() == expected


def test_postgresql_refuses_nul_characters_before_anything_is_stored(
    migrated_sqlite_url: URL, migrated_postgresql_url: URL, file: Path
) -> None:
    with Database.open(url=migrated_sqlite_url) as source, source.engine.begin() as connection:
        connection.execute(insert(events).values((1, "a", "{}", "c")))
        connection.execute(insert(events).values((2, "a", "\0", "c")))
    with Database.open(url=migrated_sqlite_url) as source:
        export_log(source.engine, file)
    with Database.open(url=migrated_postgresql_url) as target:
        for append in (False, True):
            with pytest.raises(PersistenceError, match="event 2 holds a NUL character, which PostgreSQL"):
                import_log(target.engine, file, append=append)
        assert rows_of(target) == [[], []]


def changed(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields what can happen to a file."""
    lines = content.splitlines(keepends=True)
    for end in (0, 1, len(lines[0]), len(lines[0]) + 1, len(content) // 2, len(content) - len(lines[-1])):
        yield f"cut at {end}", content[:end]
    yield "without the last line end", content[:-1]
    yield "one more line", content + b"{}\n"
    yield "one more byte", content + b"\n"
    yield "twice", content + content
    for number in range(len(lines)):
        yield f"without line {number}", b"".join([*lines[:number], *lines[number + 1 :]])
        yield f"line {number} twice", b"".join([*lines[:number], lines[number], *lines[number:]])
    for place in range(0, len(content), 7):
        yield f"byte {place} changed", content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("append", [False, True], ids=["keep", "append"])
def test_a_cut_or_altered_file_is_refused_before_anything_is_stored(
    pair: tuple[Database, Database], append: bool
) -> None:
    source, target = pair
    source.events.append_all(renamed("secret text"), command_id=COMMAND)
    source.events.append_all(renamed("b"))
    content = exported(source)
    for what, wrong in changed(content):
        with pytest.raises(PersistenceError) as caught:
            import_log(target.engine, io.BytesIO(wrong), append=append)
        assert "the stream" in str(caught.value), what
        assert "secret" not in str(caught.value)
        assert rows_of(target) == [[], []], what
    for cut in (gzip.compress(content)[:-9], gzip.compress(content)[:30] + b"\0" * 50):
        with pytest.raises(PersistenceError, match="cut or damaged"):
            import_log(target.engine, io.BytesIO(cut), append=append)
    assert import_log(target.engine, io.BytesIO(gzip.compress(content)), append=append).events == 2


def test_a_file_that_changes_between_check_and_import_is_refused(
    pair: tuple[Database, Database], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_alone, target = pair
    log_alone.events.append_all(renamed("a") * 100)  # more than a buffer holds
    export_log(log_alone.engine, file)
    keep = importing._keep

    def alter_and_keep(*arguments: Any) -> Any:
        file.write_bytes(file.read_bytes().replace(b'"name":"a"', b'"name":"b"'))
        return keep(*arguments)

    monkeypatch.setattr(importing, "_keep", alter_and_keep)
    with pytest.raises(PersistenceError, match="does not fit its checksum"):
        import_log(target.engine, file)
    assert rows_of(target) == [[], []]


def test_a_pipe_is_read(pair: tuple[Database, Database]) -> None:
    source, target = pair
    source.events.append_all(renamed("a"))
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream:
        stream.write(exported(source))
    with os.fdopen(reading, "rb") as pipe:
        assert import_log(target.engine, pipe).events == 1


def test_only_an_empty_log_at_the_newest_revision_keeps_sequences(log_alone: Database, file: Path) -> None:
    log_alone.events.append_all(renamed("a"))
    export_log(log_alone.engine, file)
    before = rows_of(log_alone)
    with pytest.raises(
        PersistenceError, match=r"is not empty: it holds rows of events\. Nothing was stored"
    ) as refused:
        import_log(log_alone.engine, file)
    assert "append=True" in str(refused.value)
    assert rows_of(log_alone) == before
    with log_alone.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '003_projections'"))
    try:
        with pytest.raises(SchemaOutOfDate):
            import_log(log_alone.engine, file)
    finally:
        with log_alone.engine.begin() as connection:
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{revisions()[-1]}'"))


def test_a_log_of_the_first_revision_is_exported(populated_url: URL, tmp_path: Path) -> None:
    engine = create_engine(populated_url)
    stream = io.BytesIO()
    report = export_log(engine, stream)
    engine.dispose()
    assert report.events > 0
    assert b'"revision":"001_initial","log_id":null' in stream.getvalue()
    with Database.open(url=f"sqlite:///{tmp_path}/target.db", maintain_projections=False) as target:
        assert import_log(target.engine, io.BytesIO(stream.getvalue())).events == report.events
        with pytest.raises(PersistenceError, match="exported at revision 001_initial, before logs had an identity"):
            import_log(target.engine, io.BytesIO(stream.getvalue()), append=True)


def test_a_file_that_is_no_log_or_does_not_exist_is_refused(log_alone: Database, file: Path) -> None:
    with pytest.raises(PersistenceError, match=r"log\.jsonl: No such file"):
        import_log(log_alone.engine, file)
    file.write_text('{"format":"peon-log","version":2}\n')
    with pytest.raises(PersistenceError, match="install a newer version of peon"):
        import_log(log_alone.engine, file)
    with pytest.raises(PersistenceError, match="No such file"):
        export_log(log_alone.engine, file.parent / "missing" / "log.jsonl")


def test_events_are_appended_as_new_ones(source: Database, target: Database) -> None:
    if source.engine.dialect.name == "sqlite" and target.engine.dialect.name == "postgresql":
        return
    other = uuid4()
    target.events.append_all([ProjectCreated(project_id=other, name="other", path="/other")])
    content = io.BytesIO(exported(source))

    report = import_log(target.engine, content, append=True)

    before, after = rows_of(source)[0], rows_of(target)[0][1:]
    assert report == (len(before), 0, 2, len(before) + 1)
    assert [row[1:3] for row in after] == [row[1:3] for row in before]
    assert [row[0] for row in after] == [*range(2, len(before) + 2)]
    assert after[-1][3] > "2026"
    target.projections.catch_up()
    assert {project.name for project in target.read_model.projects()} == {"b", "other"}
    assert target.events.append_all([], command_id=EMPTY_COMMAND) == []
    # Once more, which stores nothing; and a later export, of which only the new events are stored.
    assert import_log(target.engine, content, append=True) == (0, len(before), 0, len(before) + 1)
    source.events.append_all(renamed("later"))
    assert import_log(target.engine, io.BytesIO(exported(source)), append=True)[:2] == (1, len(before))


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3), (2, 5)])
def test_each_event_is_appended_once_however_the_pages_are_cut(
    sizes: tuple[int, int], pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    for number in range(23):
        source.events.append_all(renamed(str(number)), command_id=uuid4() if number % 9 == 5 else None)
        if number in (3, 9, 10, 22):
            monkeypatch.setattr(appending, "PAGE_EVENTS", sizes[number % 2])
            import_log(target.engine, io.BytesIO(exported(source)), append=True)
    assert [row[2] for row in rows_of(target)[0]] == [row[2] for row in rows_of(source)[0]]


def test_an_interrupted_append_continues(pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "PAGE_EVENTS", 3)
    source, target = pair
    for number in range(10):
        source.events.append_all(renamed(str(number)))
    content = io.BytesIO(exported(source))

    def interrupt(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_log(target.engine, content, append=True, progress=interrupt)
    assert len(rows_of(target)[0]) == 6
    assert import_log(target.engine, content, append=True)[:2] == (4, 6)
    assert [row[2] for row in rows_of(target)[0]] == [row[2] for row in rows_of(source)[0]]


def test_a_command_that_both_logs_have_is_stored_once(pair: tuple[Database, Database]) -> None:
    source, target = pair
    source.events.append_all(renamed("a"), command_id=COMMAND)
    target.events.append_all(renamed("a"), command_id=COMMAND)
    content = exported(source)
    assert import_log(target.engine, io.BytesIO(content), append=True) == (0, 1, 0, 1)
    source.events.append_all(renamed("b", "c"), command_id=EMPTY_COMMAND)
    target.events.append_all(renamed("b"), command_id=EMPTY_COMMAND)
    with pytest.raises(CommandConflict, match="stored 1 event here, and 2 in the exported log"):
        import_log(target.engine, io.BytesIO(exported(source)), append=True)
    assert len(rows_of(target)[0]) == 2


def test_a_log_is_not_appended_to_itself(log_alone: Database) -> None:
    log_alone.events.append_all(renamed("a"))
    with pytest.raises(PersistenceError, match=r"was exported from .* itself"):
        import_log(log_alone.engine, io.BytesIO(exported(log_alone)), append=True)


def test_events_of_an_incomplete_command_are_appended_without_it() -> None:
    entries = [(2, "t", "p", "x"), (3, "t", "p", "x")]
    receipts = [appending.ReceiptRow(str(COMMAND), 2, 3, "x"), appending.ReceiptRow(str(COMMAND), 2, 2, "y")]
    for row in receipts:
        assert [*appending._batches([row, *entries])] == [(None, entries)]
    complete = appending.ReceiptRow(str(COMMAND), 2, 2, "x")
    assert [*appending._batches([complete, *entries])] == [(COMMAND, entries)]


def test_progress_counts_each_event_twice(pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 2)
    calls: list[tuple[int, int]] = []
    source, target = pair
    source.events.append_all(renamed(*"abc"))
    stream = io.BytesIO()
    export_log(source.engine, stream, progress=lambda *call: calls.append(call))
    assert calls == [(2, 3), (3, 3)]
    import_log(target.engine, stream, progress=lambda *call: calls.append(call))
    assert calls[2:] == [(3, 6), (6, 6)]


def test_a_damaged_receipt_is_named(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as source, source.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO command_receipts VALUES ('a', 1, 'many', 'b')")
    with (
        Database.open(url=migrated_sqlite_url) as source,
        pytest.raises(PersistenceError, match="row 'a' of command_receipts is damaged"),
    ):
        exported(source)


def test_an_event_that_cannot_be_decoded_is_exported(source: Database) -> None:
    undecodable = [s for s in source.events.stream(undecodable=UndecodableEvent) if type(s.event) is UndecodableEvent]
    assert len(undecodable) >= len(PAYLOADS)
    assert exported(source).count(b'"event_type":"Un') == len(undecodable)


def test_a_full_disk_is_an_error_of_the_file(log_alone: Database) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only on Linux")
    log_alone.events.append_all(renamed("a"))
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(PersistenceError, match="/dev/full: No space left") as caught,
    ):
        export_log(log_alone.engine, full)
    assert not isinstance(caught.value, StoreUnavailable)


def test_the_record_of_a_compaction_is_imported(migrated_lasting_url: URL, target: Database) -> None:
    batch = [*SCENE, *whole("ebb and flow" * 3)]
    with Database.open(url=migrated_lasting_url) as source:
        source.events.append_all(batch, command_id=COMMAND)
        source.maintenance.compact(older_than=NO_AGE)
        lines = exported(source)
        gaps, log = source.maintenance.removed_events(), source.events.replay_all()

    import_log(target.engine, io.BytesIO(lines))

    assert gaps
    assert target.maintenance.removed_events() == gaps
    assert target.maintenance.lost_events() == []
    assert target.events.replay_all() == log
    with pytest.raises(CommandEventsMerged):
        target.events.append_all(batch, command_id=COMMAND)


def test_the_record_of_a_redaction_is_imported(migrated_lasting_url: URL, target: Database) -> None:
    batch = [*SCENE, *whole("spring tide")]
    with Database.open(url=migrated_lasting_url) as source:
        source.events.append_all(batch, command_id=COMMAND)
        source.maintenance.redact(EventQuery(), by="ada")
        lines = exported(source)
        acts, log = source.maintenance.redactions(), source.events.replay_all()

    import_log(target.engine, io.BytesIO(lines))

    assert b"spring tide" not in lines
    assert target.maintenance.redactions() == acts
    assert target.events.append_all(batch, command_id=COMMAND) == log


def test_a_compacted_log_is_not_appended(pair: tuple[Database, Database], migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as source:
        source.events.append_all([*SCENE, *whole("ebb and flow" * 3)])
        source.maintenance.compact(older_than=NO_AGE)
        lines = exported(source)
    with pytest.raises(PersistenceError, match="exported after a compaction"):
        import_log(pair[1].engine, io.BytesIO(lines), append=True)
    assert pair[1].events.last_sequence() == 0


@pytest.mark.parametrize("row", [b'[1,2,"compaction"]', b'["1",2,"compaction","now"]', b"[]"])
def test_a_record_of_a_compaction_has_the_columns_of_its_table(pair: tuple[Database, Database], row: bytes) -> None:
    header, trailer = exported(pair[0]).splitlines(keepends=True)
    header = header.replace(b'"gaps":0', b'"gaps":1')
    line = b'{"table":"removed_events","row":%b}\n' % row
    checksum = sha256(header + line).hexdigest().encode()
    trailer = re.sub(rb'"sha256":"\w+"', b'"sha256":"%b"' % checksum, trailer)
    with pytest.raises(PersistenceError, match="removed_events has other columns"):
        import_log(pair[1].engine, io.BytesIO(header + line + trailer))
