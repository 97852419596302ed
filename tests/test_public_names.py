"""The public names, written out, so that none appears or disappears by accident."""

import subprocess
import sys

import pytest

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
"""Modules that `import peon` must not load, because they are slow to import or belong to an extra."""


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


def test_importing_peon_loads_nothing_that_threads_do_not_need() -> None:
    loaded = run("import sys, peon; print(*sys.modules)").split()

    assert [name for name in NOT_FOR_THREADS if name in loaded] == []


@pytest.mark.parametrize("missing", ["greenlet", "aiosqlite"])
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
