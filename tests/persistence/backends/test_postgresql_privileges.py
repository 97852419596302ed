"""The grants of docs/how-to/grant-privileges.md suffice, none of those on the log is too many, and errors name them."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, Engine

from peon.orchestration import ProjectCreated
from peon.persistence import AppendCondition, Database, EventQuery, MigrationFailed, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.log.tag_index import TAIL_EVENTS

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "grant-privileges.md"

LOG_GRANTS = [
    ("SELECT", "alembic_version"),
    ("SELECT", "events"),
    ("INSERT", "events"),
    ("SELECT", "append_lock"),
    ("UPDATE", "append_lock"),
    ("INSERT", "tags"),
    ("SELECT", "tags"),
    ("INSERT", "event_tags"),
    ("SELECT", "event_tags"),
    ("INSERT", "tag_positions"),
    ("SELECT", "tag_positions"),
    ("UPDATE", "tag_positions"),
    ("INSERT", "command_receipts"),
    ("SELECT", "command_receipts"),
    ("INSERT", "subscription_positions"),
    ("SELECT", "subscription_positions"),
    ("UPDATE", "subscription_positions"),
    ("INSERT", "settings"),
    ("SELECT", "settings"),
    ("UPDATE", "settings"),
    ("DELETE", "settings"),
]


class Roles(NamedTuple):
    """Two roles and a schema, with names that nothing else on the server uses."""

    administrator: Engine
    migrator: URL
    application: URL
    schema: str
    statements: list[str]

    def run(self, *statements: str) -> None:
        with self.administrator.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


@pytest.fixture
def roles(postgresql_server: URL) -> Iterator[Roles]:
    name = f"test_{uuid4().hex[:12]}"
    administrator = sqlalchemy.create_engine(postgresql_server)
    blocks = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    statements = [re.sub(r"\bagents(?=\b|_)", name, block) for block in blocks]
    addresses = [
        postgresql_server.set(username=f"{name}_{role}", password=name) for role in ("migrator", "application")
    ]
    roles = Roles(administrator, *addresses, name, statements)
    roles.run(*(f"CREATE ROLE {address.username} LOGIN PASSWORD '{name}'" for address in addresses))
    yield roles
    roles.run(
        f"DROP SCHEMA IF EXISTS {name} CASCADE",
        *(f"DROP OWNED BY {address.username}; DROP ROLE {address.username}" for address in addresses),
    )
    administrator.dispose()


@pytest.fixture
def granted(roles: Roles) -> Roles:
    roles.run(*roles.statements[:2])
    Database.open(url=roles.migrator, maintain_projections=False).close()
    engine = sqlalchemy.create_engine(roles.migrator)
    with engine.begin() as connection:
        connection.exec_driver_sql(roles.statements[2])
    engine.dispose()
    return roles


def created(project_id: UUID) -> ProjectCreated:
    return ProjectCreated(project_id=project_id, name="Tides", path=f"/{project_id}")


def use(url: URL, *, maintain_projections: bool, more: int = 0) -> None:
    """Does what an application does.

    Args:
        more: Events to append besides; a condition reads fewer than `TAIL_EVENTS` without the index.
    """
    ids = [uuid4() for _ in range(4)]
    with Database.open(url=url, migrate=False, maintain_projections=maintain_projections) as database:
        after = database.events.append_all([created(ids[0])])[0].sequence
        database.events.append_all([created(uuid4()) for _ in range(more)])
        condition = AppendCondition(query=EventQuery(project_id=ids[1]), after=0)
        database.events.append_all([created(ids[1])], condition=condition, command_id=ids[2])
        found = database.events.stream(after=after - 1, query=EventQuery(project_id=ids[0]))
        assert [stored.sequence for stored in found] == [after]
        subscription = database.events.durable_subscription(f"mail {ids[3]}")
        next(subscription)
        subscription.save_position()
        subscription.close()
        database.settings.set("theme", 1)
        database.settings.set("theme", 2)
        assert database.settings.get("theme") == 2
        database.settings.delete("theme")
        if maintain_projections:
            database.projections.rebuild()
            assert database.projections.verify() == []
            assert ids[0] in {project.id for project in database.read_model.projects()}


def test_the_grants_suffice(granted: Roles) -> None:
    use(granted.application, maintain_projections=True)

    async def use_in_event_loop() -> None:
        async with await AsyncDatabase.open(url=granted.application, migrate=False) as database:
            await database.events.append_all([created(uuid4())])
            assert len(await database.read_model.projects()) == 3

    asyncio.run(use_in_event_loop())


@pytest.mark.parametrize(
    "statement",
    rest_is_slow(
        [
            *("DELETE FROM events", "CREATE TABLE own (n INTEGER)"),
            *("UPDATE events SET payload = ''", "DROP TABLE events", "ALTER TABLE events DISABLE TRIGGER USER"),
            "UPDATE alembic_version SET version_num = ''",
        ],
        first=2,
    ),
)
def test_the_application_cannot_change_the_log_or_the_schema(granted: Roles, statement: str) -> None:
    engine = sqlalchemy.create_engine(granted.application)
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError, match=r"permission|owner"):
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.slow
def test_each_grant_on_the_log_is_needed_and_named_when_it_is_missing(granted: Roles) -> None:
    application = granted.application.username
    for privilege, table in LOG_GRANTS:
        granted.run(f"REVOKE {privilege} ON {granted.schema}.{table} FROM {application}")
        named = rf"GRANT [^;]*\b{privilege}\b[^;]* ON {table} TO"
        with pytest.raises(StoreUnavailable, match=named):
            use(granted.application, maintain_projections=False, more=TAIL_EVENTS + 1)
        granted.run(f"GRANT {privilege} ON {granted.schema}.{table} TO {application}")


def test_a_role_that_only_reads_needs_no_more_than_select(granted: Roles) -> None:
    wanted = uuid4()
    with Database.open(url=granted.application, migrate=False) as database:
        database.events.append_all([created(wanted), *(created(uuid4()) for _ in range(TAIL_EVENTS + 1))])
    granted.run(
        f"REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {granted.schema} FROM {granted.application.username}"
    )
    with Database.open(url=granted.application, migrate=False, maintain_projections=False) as database:
        found = database.events.stream(query=EventQuery(project_id=wanted))
        assert [stored.sequence for stored in found] == [1]
        assert len(database.read_model.projects()) == TAIL_EVENTS + 2


def test_a_missing_grant_is_named(granted: Roles) -> None:
    granted.run(f"REVOKE INSERT ON {granted.schema}.events FROM {granted.application.username}")
    with (
        Database.open(url=granted.application, migrate=False) as database,
        pytest.raises(StoreUnavailable, match="for table events: run  GRANT SELECT, INSERT ON events"),
    ):
        database.events.append_all([created(uuid4())])


def in_schema(url: URL, schema: str) -> URL:
    return url.update_query_dict({"options": f"-csearch_path={schema}"})


def opening(url: URL, **options: Any) -> str:
    with pytest.raises((StoreUnavailable, MigrationFailed)) as refused:
        Database.open(url=url, **options)
    return str(refused.value)


@pytest.mark.parametrize("migrate", [True, False])
def test_a_schema_that_does_not_exist_is_named(roles: Roles, migrate: bool) -> None:
    message = opening(in_schema(roles.migrator, roles.schema), migrate=migrate)
    assert f"CREATE SCHEMA {roles.schema}" in message
    assert "GRANT USAGE" in message
    assert f"{roles.schema}_migrator" in message


@pytest.mark.parametrize("migrate", [True, False])
def test_a_schema_that_the_role_may_not_use_is_named(granted: Roles, migrate: bool) -> None:
    granted.run(f"REVOKE USAGE ON SCHEMA {granted.schema} FROM {granted.application.username}")
    message = opening(in_schema(granted.application, granted.schema), migrate=migrate)
    assert f"GRANT USAGE, CREATE ON SCHEMA {granted.schema} TO {granted.application.username}" in message


def test_a_schema_in_which_the_role_may_not_create_is_named(roles: Roles) -> None:
    roles.run(f"CREATE SCHEMA {roles.schema}", f"GRANT USAGE ON SCHEMA {roles.schema} TO {roles.migrator.username}")
    message = opening(in_schema(roles.migrator, roles.schema))
    assert f"permission denied for schema {roles.schema}: run  GRANT USAGE, CREATE ON SCHEMA {roles.schema}" in message


def test_a_role_that_does_not_own_the_tables_is_told_to_be_the_owner(granted: Roles) -> None:
    with granted.administrator.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE {granted.schema}.alembic_version SET version_num = '003_projections'; "
            f"DROP TABLE {granted.schema}.append_lock, {granted.schema}.tags, {granted.schema}.event_tags, "
            f"{granted.schema}.tag_positions, {granted.schema}.command_receipts, "
            f"{granted.schema}.subscription_positions; "
            f"DROP FUNCTION {granted.schema}.events_notify CASCADE; "
            f"GRANT CREATE ON SCHEMA {granted.schema} TO {granted.application.username}"
        )
    message = opening(granted.application)
    assert "for a migration, connect as the owner of the tables" in message
