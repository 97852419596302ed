"""Checks of tables, indexes, triggers and the revision."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table, and_, column, exists, func, inspect, select, table
from sqlalchemy.schema import CreateIndex

from peon.persistence import migrations
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.operations.diagnosis.findings import Finding, Findings, failure, not_checked, warning
from peon.persistence.operations.diagnosis.subject import Subject
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import (
    event_tags,
    events,
    log_identity,
    metadata,
    projection_positions,
    projection_problems,
    tag_positions,
    tags,
)

EMPTY_TAG_INDEX = "run  DELETE FROM tag_positions; DELETE FROM event_tags; DELETE FROM tags  : queries fill it again"

NOT_OURS = "drop it, unless the application needs it"


def revision(subject: Subject) -> Findings:
    """The database is at exactly one revision, the newest one."""
    newest = migrations.revisions()[-1]
    with subject.reading() as connection:
        found = migrations.known_revision(connection)
    if found is None and events.name not in subject.tables:
        yield failure("the database has no tables yet", f"run  {subject.peon('migrate')}")
    elif found is None:
        yield failure(
            f"the tables have no revision: the table {version_table_of(subject.database.engine)} is missing or empty",
            f"restore a backup, or insert the revision that the tables have; of the newest tables it is {newest}",
        )
    elif found != newest:
        yield warning(
            f"the revision is {found}, and the newest is {newest}",
            f"run  {subject.peon('migrate')} ; applications also do when they open the database",
        )
    return newest


def tables(subject: Subject) -> Findings:
    """Tables, columns, keys and indexes are those of the newest revision; tables of applications are ignored."""
    if not subject.is_newest:
        yield not_checked(f"the tables of revision {subject.revision or 'base'} differ from those of the newest")
        return ""
    # Imported here, because it takes longer than most checks.
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with subject.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_name": _is_of_peon, "target_metadata": metadata}
        )
        for difference in compare_metadata(context, metadata):
            # Changes of one column come as a list.
            for each in difference if isinstance(difference, list) else [difference]:
                yield _difference(subject, connection, each)
    return "as declared"


def _is_of_peon(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in metadata.tables


def _difference(subject: Subject, connection: Connection, difference: tuple[Any, ...]) -> Finding:
    kind, subjects = difference[0], difference[1:]
    if kind == "add_table":
        return failure(f"the table {subjects[0].name} is missing", _advice_for(subject, subjects[0].name))
    if kind == "add_index":
        statement = " ".join(str(CreateIndex(subjects[0]).compile(dialect=connection.dialect)).split())
        return failure(f"the index {subjects[0].name} is missing", f"run  {statement}")
    if kind == "remove_index":
        return warning(f"the index {subjects[0].name} is not one of Peon's", NOT_OURS)
    if kind in ("add_column", "remove_column"):
        name = f"{subjects[1]}.{subjects[2].name}"
        if kind == "remove_column":
            return warning(f"the column {name} is not one of Peon's", NOT_OURS)
        return failure(f"the column {name} is missing", _advice_for(subject, subjects[1]))
    if kind.startswith("modify_"):
        aspect = kind.removeprefix("modify_").replace("_", " ")
        return failure(
            f"the column {subjects[1]}.{subjects[2]} has another {aspect}", _advice_for(subject, subjects[1])
        )
    owner = getattr(subjects[0], "table", None)
    name = owner.name if isinstance(owner, Table) else ""
    what = "key" if kind.endswith("fk") else "constraint"
    found = "is missing" if kind.startswith("add") else "is not one of Peon's"
    return failure(f"a {what} of the table {name} {found}", _advice_for(subject, name))


def _advice_for(subject: Subject, name: str) -> str:
    rebuilt = {each.name for each in (*OrchestrationProjection.tables, projection_positions, projection_problems)}
    if name in rebuilt:
        return f"run  {subject.peon('rebuild')}"
    again = f"create it again, as  {subject.peon('migrate --sql')}  prints it"
    if name in (tags.name, event_tags.name, tag_positions.name):
        return f"{again}, and empty the tag index"
    return f"restore a backup, or {again}"


def append_only(subject: Subject) -> Findings:
    """The triggers that refuse to change events, and what appends need, are in place."""
    if not subject.is_newest:
        yield not_checked(f"the revision is {subject.revision or 'base'}")
        return ""
    with subject.reading() as connection:
        missing = subject.backend.missing_parts(connection)
        advice = f"create it again, as  {subject.peon('migrate --sql')}  prints it"
        for part, fix in missing.items():
            yield failure(f"{part} is missing", fix if fix.startswith("run") else advice)
        if subject.backend.name == "sqlite":  # which keeps the whole text of a trigger; PostgreSQL's call a function
            rows = connection.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'events' "
                "AND name LIKE 'events_refuse_%' AND sql NOT LIKE '%RAISE(ABORT%'"
            )
            for name in rows.scalars().all():
                yield failure(f"the trigger {name} does not refuse anything", f"drop it, and {advice}")
    return "the log refuses changes"


def identity(subject: Subject) -> Findings:
    """The log has an identity, by which clients notice that a position is of another log."""
    with subject.reading() as connection:
        found = connection.scalars(select(log_identity.c.identity)).all()
    fix = 'run  python -c "from peon import Database; Database.open().events.renew_log_id()"'
    if len(found) != 1:
        yield failure(f"the table log_identity has {len(found)} rows instead of one", fix)
    elif not _is_identifier(found[0]):
        yield failure("the identity of the log is not a UUID", fix)
    return found[0] if found else ""


def _is_identifier(text: object) -> bool:
    try:
        UUID(str(text))
    except ValueError:
        return False
    return True


def foreign_keys(subject: Subject) -> Findings:
    """No row refers to a row that does not exist."""
    with subject.reading() as connection:
        schema = subject.backend.schema_for_new_tables(connection)
        keys = inspect(connection).get_multi_foreign_keys(schema=schema)
        pairs = [(name, key) for (_, name), found in sorted(keys.items(), key=lambda item: item[0][1]) for key in found]
        for number, (name, key) in enumerate(pairs):
            subject.report(number, len(pairs))
            if key["referred_table"] in subject.tables or key["referred_schema"] not in (None, schema):
                yield from _orphans(subject, connection, name, key, schema)
    return counted(len(pairs), "key holds", "keys hold")


def _orphans(subject: Subject, connection: Connection, name: str, key: Any, schema: str | None) -> Iterator[Finding]:
    child = table(name, *(column(each) for each in key["constrained_columns"]), schema=schema)
    parent = table(
        key["referred_table"],
        *(column(each) for each in key["referred_columns"]),
        schema=key["referred_schema"] or schema,
    ).alias()
    pairs = [*zip(child.columns, parent.columns, strict=True)]
    is_given = and_(*(mine.is_not(None) for mine, _ in pairs))
    is_there = exists(select(1).select_from(parent).where(*(mine == theirs for mine, theirs in pairs)))
    count = connection.scalar(select(func.count()).select_from(child).where(is_given, ~is_there))
    if count:
        fix = f"run  {subject.peon('rebuild')}" if name in metadata.tables else "delete or repair these rows"
        refer = counted(count, f"row of {name} refers to a row", f"rows of {name} refer to rows")
        missing = "that does not exist" if count == 1 else "that do not exist"
        yield failure(f"{refer} of {key['referred_table']} {missing}", fix)
