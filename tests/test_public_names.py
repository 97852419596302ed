"""The public names, written out, so that none appears or disappears by accident."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL

import peon
import peon.orchestration
import peon.persistence

PUBLIC = """
    AppConfig AppendCondition AsyncDatabase AsyncDurableSubscription AsyncEventStore AsyncMaintenance
    AsyncProjections AsyncReadModel AsyncSettingsStore AsyncSubscription BackupReport CommandConflict
    CommandEventsMerged CommandEventsRemoved Compaction ConcurrencyError ConfigError DamagedFile Database Difference
    DurableSubscription EventCodec EventDecodeError EventEncodeError EventQuery EventStore ExportReport ImportReport
    LostRow Maintenance MigrationFailed PersistenceError PositionBeyondEnd Problem Projection ProjectionError
    Projections ProjectionsOutOfDate ProjectionsTooNew ReadModel RecordedRedaction Redaction Refusal RemovedEvents
    RestoreReport ResumedSubscription SalvageReport SchemaError SchemaOutOfDate SchemaTooNew SequenceRange SettingError
    SettingsStore StoreUnavailable StoredEvent Subscription SubscriptionConflict UndecodableEvent Upcaster Vacuum
    __version__ back_up_database copy_database create_async_engine create_engine export_log import_log
    restore_database salvage_database upgrade
"""

PERSISTENCE = """
    AppendCondition BackupReport CommandConflict CommandEventsMerged CommandEventsRemoved Compaction
    ConcurrencyError DamagedFile Database Difference EventCodec EventDecodeError EventEncodeError EventQuery
    EventStore ExportReport ImportReport LostRow Maintenance MigrationFailed NamedSubscription PersistenceError
    PositionBeyondEnd Problem Projection ProjectionError Projections ProjectionsOutOfDate ProjectionsTooNew
    ReadModel RecordedRedaction Redaction Refusal RemovedEvents RestoreReport ResumedSubscription SalvageReport
    SchemaError SchemaOutOfDate
    SchemaTooNew SequenceRange SettingError SettingsStore StoreUnavailable StoredEvent Subscription
    SubscriptionConflict UndecodableEvent Upcaster Vacuum back_up_database copy_database create_engine export_log
    import_log restore_database salvage_database upgrade
"""

ORCHESTRATION = """
    ActionApproved ActionRejected Approval ApprovalRequested ApprovalStatus Branch BranchCreated BranchPushed
    ChangesCommitted Checkpoint CheckpointCreated CheckpointRestored ChunkJoiner Commit Event MARKER
    Message MessageAppended MessageChunkReceived MessageContent MessageRole OrchestrationEvent Project ProjectCreated
    ProjectDeleted ProjectRenamed Provider RuntimeMode Snapshot TextContent ThinkingContent Thread ThreadCreated
    ThreadDeleted ThreadSelected ThreadStatus ThreadStatusChanged ToolCallContent ToolResultContent Turn
    TurnCompleted TurnFailed TurnInterrupted TurnStarted TurnStatus event_type_name redacted storable_text
"""

NOT_FOR_THREADS = ("sqlalchemy.ext.asyncio", "aiosqlite", "psycopg", "alembic", "peon.persistence.asynchronous")
"""Modules that threads do not need, because they are slow to import or belong to an extra."""

NOT_FOR_NAMES = ("sqlalchemy", "pydantic", "asyncio", "peon.persistence", "peon.config")
"""Modules that `import peon` must not load: a program that uses one name waits for that name only."""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_peon_has_these_public_names_and_no_other() -> None:
    assert sorted(peon.__all__) == sorted(PUBLIC.split())
    assert {*peon.__all__} <= {*dir(peon)}


@pytest.mark.parametrize("name", PUBLIC.split())
def test_each_public_name_can_be_imported(name: str) -> None:
    assert getattr(peon, name) is not None


def test_persistence_and_orchestration_export_these_names() -> None:
    for module, names in ((peon.persistence, PERSISTENCE), (peon.orchestration, ORCHESTRATION)):
        assert [name for name in names.split() if not hasattr(module, name)] == []
    assert peon.persistence.NamedSubscription is peon.DurableSubscription


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'peon' has no attribute 'Databases'"):
        peon.Databases  # noqa: B018


def test_importing_peon_loads_nothing() -> None:
    loaded = run("import sys, peon; print(*sys.modules)").split()

    assert [name for name in NOT_FOR_NAMES if name in loaded] == []


def test_opening_an_sqlite_file_loads_nothing_that_threads_do_not_need(migrated_sqlite_url: URL) -> None:
    program = f"import sys, peon; peon.Database.open(url={str(migrated_sqlite_url)!r}).close(); print(*sys.modules)"
    loaded = run(program).split()

    assert [name for name in (*NOT_FOR_THREADS, "sqlalchemy.dialects.postgresql") if name in loaded] == []


def test_the_packages_are_attributes_of_peon() -> None:
    program = "import peon; print(peon.persistence.Database, peon.orchestration.Thread, peon.config.AppConfig)"

    assert "peon.persistence.database.Database" in run(program)


@pytest.mark.parametrize("module", rest_is_slow(["peon", "peon.persistence"], first=1))
def test_a_star_import_takes_each_name(module: str) -> None:
    program = f"import {module}; from {module} import *; print(set({module}.__all__) <= set(globals()))"

    assert run(program) == "True\n"


@pytest.mark.parametrize("package", [peon, peon.persistence])
def test_type_checkers_see_what_is_loaded(package: ModuleType) -> None:
    """They read the imports below TYPE_CHECKING; the program loads names as `__getattr__` says."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (each for each in tree.body if isinstance(each, ast.If) and isinstance(each.test, ast.Name))
    seen = {
        alias.name: str(each.module) for each in block.body if isinstance(each, ast.ImportFrom) for alias in each.names
    }

    assert {*seen} == {*package.__all__} - {"__version__", "NamedSubscription"}
    for name, module in seen.items():
        assert getattr(package, name) is getattr(import_module(module), name), name


@pytest.mark.parametrize("missing", rest_is_slow(["greenlet", "aiosqlite"], first=1))
def test_without_its_extra_the_asynchronous_api_says_what_to_install(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None  # as if it were not installed
import asyncio, peon
for _ in range(2):
    try:
        asyncio.run(peon.AsyncDatabase.open(url="sqlite://"))
    except (ImportError, peon.PersistenceError) as error:
        print(error)
"""
    assert run(program).count("extra 'async'") == 2


def test_without_the_extra_async_a_star_import_leaves_out_the_asynchronous_names() -> None:
    program = """
import sys
sys.modules["greenlet"] = None  # as if it were not installed
from peon import *
print(*(name for name in globals()))
"""
    asynchronous = {name for name in PUBLIC.split() if name.startswith("Async") or name == "create_async_engine"}

    assert {*run(program).split()} & {*PUBLIC.split()} == {*PUBLIC.split()} - asynchronous
