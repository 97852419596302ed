"""The revision of Peon's tables is in the configured table, beside that of another Alembic tree."""

import asyncio
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from helpers.command_processes import run_alembic
from helpers.migrated_databases import address, engine_of, file_of, names_in, schema_of, thaw
from sqlalchemy import URL, MetaData, inspect, text

from peon.config import AppConfig
from peon.persistence import Database, SchemaError, SchemaOutOfDate, SchemaTooNew, create_engine, upgrade
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.asynchronous import create_async_engine as create_async
from peon.persistence.migrations import alembic_folder, exclude_peon_tables, migration_transaction, revisions
from peon.persistence.operations.copying import copy_database
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.projections.shadow_tables import shadowed

HEAD = revisions()[-1]
NAME = "peon_version"
THEIRS = "ae1027a6acf"
CREATE_THEIRS = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
    f"INSERT INTO alembic_version VALUES ('{THEIRS}')",
)
RENAME = f"ALTER TABLE alembic_version RENAME TO {NAME}"


def run(url: URL, *statements: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def revisions_in(url: URL, name: str) -> list[str]:
    with engine_of(url) as engine, engine.connect() as connection:
        return list(connection.scalars(text(f'SELECT version_num FROM "{name}"')))


def tables_of(url: URL) -> list[str]:
    with engine_of(url) as engine:
        return inspect(engine).get_table_names()


def named(name: str = NAME) -> AppConfig:
    return AppConfig(database={"version_table": name})


def opening(url: URL, config: AppConfig) -> list[Callable[[], None]]:
    async def opened() -> None:
        await (await AsyncDatabase.open(config, url=url, maintain_projections=False)).close()

    return [
        lambda: Database.open(config, url=url, maintain_projections=False).close(),
        lambda: Database.open(config, url=url, maintain_projections=False, migrate=False).close(),
        lambda: asyncio.run(opened()),
    ]


def refusal(url: URL, config: AppConfig, kind: type[SchemaError]) -> str:
    """Returns the message with which each way to open the database refuses it, without writing anything."""
    before = schema_of(url)
    messages = set()
    for opened in opening(url, config):
        with pytest.raises(SchemaError) as refused:
            opened()
        assert type(refused.value) is kind
        messages.add(str(refused.value))
    assert schema_of(url) == before
    (message,) = messages
    assert str(url.database) in message
    return message


@pytest.mark.postgresql_too("Alembic, and names of tables")
@pytest.mark.parametrize("name", [NAME, "order"])
def test_a_database_is_migrated_beside_another_tree(lasting_url: URL, name: str) -> None:
    Path(str(lasting_url.database)).parent.mkdir(exist_ok=True)
    run(lasting_url, *CREATE_THEIRS)

    for opened in opening(lasting_url, named(name)):
        opened()

    assert revisions_in(lasting_url, name) == [HEAD]
    assert revisions_in(lasting_url, "alembic_version") == [THEIRS]


def test_a_database_in_memory_can_have_the_table_too() -> None:
    for opened in [partial(Database.open, named(), url="sqlite://"), partial(Database.open, url="sqlite://")]:
        with opened() as database:
            assert database.events.replay_all() == []
    asyncio.run(open_in_memory())


async def open_in_memory() -> None:
    async with await AsyncDatabase.open(named(), url="sqlite://") as database, database.engine.connect() as connection:
        found = await connection.run_sync(lambda connection: inspect(connection).get_table_names())
    assert NAME in found
    assert "alembic_version" not in found


def test_an_engine_knows_the_table(lasting_url: URL) -> None:
    engine = create_engine(lasting_url, version_table=NAME)
    upgrade(engine)
    upgrade(engine)
    engine.dispose()

    assert NAME in tables_of(lasting_url)
    assert "alembic_version" not in tables_of(lasting_url)
    for opened in opening(lasting_url, named()):
        opened()


def test_databases_with_different_tables_can_be_copied(migrated_lasting_url: URL, tmp_path: Path) -> None:
    run(migrated_lasting_url, RENAME)
    with (
        Database.open(named(), url=migrated_lasting_url) as source,
        Database.open(url=f"sqlite:///{tmp_path}/copy.db") as target,
    ):
        assert copy_database(source, target) == 0


@pytest.mark.postgresql_too("Alembic, and names of tables")
@pytest.mark.parametrize("create", [create_engine, create_async])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("events", "own tables"),
        ("projection_turns", "own tables"),
        ("idx_turns_thread", "own tables"),
        ("Version", "1 to 59 lower-case letters"),
        ("pg_class", "1 to 59 lower-case letters"),
        ("", "1 to 59 lower-case letters"),
    ],
)
def test_a_table_that_cannot_hold_the_revision_is_refused(
    create: Callable[..., object], name: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        create("sqlite://", version_table=name)


def test_a_table_whose_name_is_not_text_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        create_engine("sqlite://", version_table=None)  # type: ignore[arg-type]


# A database with the revision in another table


def test_a_new_name_does_not_create_the_tables_again(migrated_lasting_url: URL) -> None:
    message = refusal(migrated_lasting_url, named(), SchemaError)

    assert f"in the table alembic_version of {migrated_lasting_url.drivername}" in message
    assert f"not in {NAME}: set database.version_table to alembic_version, or run" in message
    run(migrated_lasting_url, message.partition("or run  ")[2])
    for opened in opening(migrated_lasting_url, named()):
        opened()


def test_a_forgotten_name_does_not_create_the_tables_again(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, RENAME)
    assert f"set database.version_table to {NAME}, or run" in refusal(migrated_lasting_url, AppConfig(), SchemaError)


def test_a_forgotten_name_is_found_beside_another_tree(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, RENAME, *CREATE_THEIRS)
    message = refusal(migrated_lasting_url, AppConfig(), SchemaError)
    assert message.endswith(f"not in alembic_version: set database.version_table to {NAME}")


def test_the_statement_quotes_the_names(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, 'ALTER TABLE alembic_version RENAME TO "Group"')
    message = refusal(migrated_lasting_url, named("order"), SchemaError)
    run(migrated_lasting_url, message.partition("or run  ")[2])
    assert revisions_in(migrated_lasting_url, "order") == [HEAD]


def test_a_version_table_that_the_role_may_not_read_is_passed_over(migrated_postgresql_url: URL) -> None:
    schema = str(migrated_postgresql_url.query["options"]).rpartition("=")[2]
    role = f"reader_of_{schema}"
    run(
        migrated_postgresql_url,
        RENAME,
        "CREATE TABLE a_version (version_num VARCHAR(32) NOT NULL)",
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON {NAME} TO {role}",
    )
    try:
        url = migrated_postgresql_url.set(query={"options": f"-csearch_path={schema} -crole={role}"})
        with pytest.raises(SchemaError, match=f"set database.version_table to {NAME}"):
            Database.open(url=url, migrate=False)
    finally:
        run(migrated_postgresql_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


# A version table of another tree


@pytest.mark.parametrize("revision", [THEIRS, "001_initial", "999_future"])
def test_the_revision_of_another_tree_is_told_from_a_newer_version(lasting_url: URL, revision: str) -> None:
    Path(str(lasting_url.database)).parent.mkdir(exist_ok=True)
    run(lasting_url, *CREATE_THEIRS, f"UPDATE alembic_version SET version_num = '{revision}'")

    message = refusal(lasting_url, AppConfig(), SchemaTooNew)

    assert f"holds the revision {revision} of another Alembic tree" in message
    assert "database.version_table" in message
    assert "newer version" not in message


@pytest.mark.postgresql_too("Alembic, and names of tables")
def test_another_tree_that_has_replaced_the_revision_is_named(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, f"UPDATE alembic_version SET version_num = '{THEIRS}'")
    assert "of another Alembic tree" in refusal(migrated_lasting_url, AppConfig(), SchemaTooNew)


def test_a_newer_version_is_told_from_another_tree(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, RENAME, f"UPDATE {NAME} SET version_num = '999_future'")
    message = refusal(migrated_lasting_url, named(), SchemaTooNew)
    assert "install a newer version of peon" in message
    assert "another Alembic tree" not in message


def test_a_newer_version_is_not_taken_for_another_tree_because_of_an_old_table(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, "CREATE TABLE an_old_version AS SELECT * FROM alembic_version")
    run(migrated_lasting_url, "UPDATE alembic_version SET version_num = '999_future'")
    message = refusal(migrated_lasting_url, AppConfig(), SchemaTooNew)
    assert "install a newer version of peon" in message
    assert message.endswith("is of another Alembic tree, set database.version_table to an_old_version")


def test_two_trees_in_one_table_are_refused(migrated_lasting_url: URL) -> None:
    run(migrated_lasting_url, f"INSERT INTO alembic_version VALUES ('{THEIRS}')")
    message = refusal(migrated_lasting_url, AppConfig(), SchemaError)
    assert f"{HEAD}, {THEIRS}" in message
    assert message.endswith("and give each Alembic tree a version table of its own")


# Alembic


@pytest.fixture
def config() -> Config:
    return Config(str(alembic_folder() / "alembic.ini"))


@pytest.mark.postgresql_too("Alembic, and names of tables")
def test_alembic_uses_the_configured_table(
    config: Config, lasting_url: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", NAME)
    config.set_main_option("sqlalchemy.url", address(lasting_url).replace("%", "%%"))

    command.upgrade(config, "head")
    assert revisions_in(lasting_url, NAME) == [HEAD]
    command.check(config)
    Database.open(url=lasting_url, migrate=False, maintain_projections=False).close()
    command.upgrade(config, "head", sql=True)
    assert f"CREATE TABLE {NAME} " in capsys.readouterr().out
    command.downgrade(config, "base")

    assert tables_of(lasting_url) == [NAME]


def test_alembic_refuses_a_table_with_a_wrong_name(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("Peon", "database.version_table"), ("events", "own tables")):
        monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", name)
        with pytest.raises(CommandError, match=expected):
            command.upgrade(config, "head")


def test_alembic_uses_the_table_of_the_engine_of_a_connection(config: Config, lasting_url: URL) -> None:
    engine = create_engine(lasting_url, version_table=NAME)
    with migration_transaction(engine) as config.attributes["connection"]:
        command.upgrade(config, "head")
    engine.dispose()
    assert revisions_in(lasting_url, NAME) == [HEAD]


def test_the_command_to_run_names_the_table(sqlite_url: URL, tmp_path: Path) -> None:
    with pytest.raises(SchemaOutOfDate) as refused:
        Database.open(named(), url=sqlite_url, migrate=False)

    advice = shlex.split(str(refused.value).partition("Run:  ")[2])
    assert run_alembic(tmp_path, *advice[1:]).returncode == 0

    Database.open(named(), url=sqlite_url, migrate=False, maintain_projections=False).close()


def test_the_revision_alone_is_no_reason_for_a_copy(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url, version_table=NAME)
    config = Config(str(alembic_folder() / "alembic.ini"))
    with migration_transaction(engine) as config.attributes["connection"]:
        command.upgrade(config, "001_initial")
    upgrade(engine)
    engine.dispose()

    assert names_in(file_of(sqlite_url).parent) == ["peon.db"]


def test_a_copy_of_a_populated_file_is_saved(sqlite_url: URL) -> None:
    thaw("001_initial", file_of(sqlite_url))
    run(sqlite_url, RENAME)
    Database.open(named(), url=sqlite_url).close()
    assert "peon.db.001_initial.backup" in names_in(file_of(sqlite_url).parent)


# The application's autogenerate


def test_the_tables_of_peon_are_excluded(monkeypatch: pytest.MonkeyPatch, migrated_lasting_url: URL) -> None:
    engine = sqlalchemy.create_engine(migrated_lasting_url)
    found = inspect(engine).get_table_names()
    engine.dispose()
    assert [name for name in found if exclude_peon_tables(name, "table", {})] == []

    monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", NAME)
    assert exclude_peon_tables("alembic_version", "table", {})
    assert not exclude_peon_tables(NAME, "table", {})
    assert not exclude_peon_tables("mine", "table", {}, version_table="mine")


def test_autogenerate_proposes_nothing_about_tables_indexes_and_shadow_tables(migrated_lasting_url: URL) -> None:
    with (
        engine_of(migrated_lasting_url) as engine,
        engine.connect() as connection,
        shadowed(connection, OrchestrationProjection.tables),
    ):
        options = {"include_name": exclude_peon_tables, "version_table": "own_version"}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, MetaData()) == []


def test_what_is_not_a_table_of_peon_is_compared() -> None:
    own = sqlalchemy.Table("words", MetaData())
    assert exclude_peon_tables("words", "table", {"schema_name": None})
    assert not exclude_peon_tables("words", "table", {"schema_name": None}, tables=[own])
    for kind in ("schema", "column", "index", "unique_constraint", "foreign_key_constraint"):
        assert exclude_peon_tables("events", kind, {"table_name": "notes"})
    assert exclude_peon_tables(None, "schema", {})
