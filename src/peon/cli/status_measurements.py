"""Measures the state of a database at any revision, without counting its events."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Table, func, inspect, select

from peon.cli.log_times import first_at
from peon.cli.status_document import LogStatus, ProjectionStatus, Status, StorageStatus
from peon.cli.subscription_document import Subscription, described
from peon.persistence import migrations
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.sizes import SizeOfPart
from peon.persistence.log.removed import number_removed
from peon.persistence.orchestration.visibility import visible_if_known
from peon.persistence.schema import (
    LAST_SEQUENCE,
    checkpoints,
    events,
    projection_approvals,
    projection_positions,
    projection_problems,
    projection_turns,
    removed_events,
    subscription_positions,
)
from peon.persistence.schema.timestamps import parse_timestamp
from peon.persistence.subscriptions.administration import saved_positions

MEASURED_BYTES = 500_000_000
"""SQLite files up to this size are read to measure tables and indexes, which takes about a second."""

DAY = timedelta(days=1)


def measured(engine: Engine, *, briefly: bool, sizes: bool | None = None) -> Status:
    """Returns the state of a database.

    Args:
        briefly: Leave out what takes longer for a larger database.
        sizes: Measure tables and indexes; `None` to decide by the size of the file.
    """
    backend = backend_of(engine)
    with DriverErrors(engine, expects_tables=True), backend.projection_reads(engine).begin() as connection:
        revision = migrations.current_revision(connection)
        # Any revision, and the tables may be damaged: what is not there is not shown.
        schema = backend.schema_for_new_tables(connection)
        part = _Part(connection, inspect(connection).get_table_names(schema=schema))
        log = _log(connection, removed=part.removed())
        return Status(
            database=database_name(engine),
            backend=backend.name,
            version=backend.version(connection),
            revision=revision,
            newest_revision=migrations.revisions()[-1],
            log=log,
            storage=_storage(connection, sizes=not briefly and sizes),
            projections=part.projections(log.last_sequence),
            subscriptions=part.subscriptions(log.last_sequence),
            running_turns=None if briefly else part.running_turns(),
            pending_approvals=None if briefly else part.pending_approvals(),
            users=None if briefly else backend.users(connection),
            checks=None,
        )


def _log(connection: Connection, *, removed: int) -> LogStatus:
    last: int = connection.scalars(LAST_SEQUENCE).one()
    first = connection.scalar(select(func.min(events.c.sequence)))
    if first is None:
        return LogStatus(
            events=0,
            first_sequence=None,
            last_sequence=last,
            first_stored_at=None,
            last_stored_at=None,
            events_a_day=None,
            events_last_day=0,
        )
    begun, ended = _stored_at(connection, first), _stored_at(connection, last)
    span = ended - begun if begun is not None and ended is not None else timedelta()
    count = last - first + 1 - removed
    return LogStatus(
        events=count,
        first_sequence=first,
        last_sequence=last,
        first_stored_at=begun,
        last_stored_at=ended,
        events_a_day=round(count * (DAY / span), 1) if span >= DAY else None,
        events_last_day=last + 1 - max(first_at(connection, datetime.now(UTC) - DAY), first),
    )


def _stored_at(connection: Connection, sequence: int) -> datetime | None:
    text = connection.scalar(select(events.c.stored_at).where(events.c.sequence == sequence))
    try:
        return parse_timestamp(str(text))
    except ValueError:  # in a damaged file
        return None


def _storage(connection: Connection, *, sizes: bool | None) -> StorageStatus:
    backend = backend_of(connection)
    storage = backend.storage(connection)
    is_cheap = not backend.measures_parts_by_reading or storage.database <= MEASURED_BYTES
    parts = backend.sizes_of_parts(connection) if sizes or (sizes is None and is_cheap) else None
    measured = {} if parts is None else _by_kind(parts)
    return StorageStatus(
        database=storage.database,
        write_ahead_log=storage.write_ahead_log,
        free=storage.free,
        log=measured.get("log"),
        projections=measured.get("projections"),
        other_tables=measured.get("other_tables"),
        indexes=measured.get("indexes"),
    )


def _by_kind(parts: Collection[SizeOfPart]) -> dict[str, int]:
    found = dict.fromkeys(("log", "projections", "other_tables", "indexes"), 0)
    for part in parts:
        if part.is_index:
            kind = "indexes"
        elif part.table == events.name:
            kind = "log"
        elif part.table.startswith("projection_") or part.table == checkpoints.name:
            kind = "projections"
        else:
            kind = "other_tables"
        found[kind] += part.bytes
    return found


class _Part(NamedTuple):
    """Reads tables that older revisions do not have."""

    connection: Connection
    tables: Collection[str]

    def projections(self, end: int) -> list[ProjectionStatus]:
        if projection_positions.name not in self.tables:
            return []
        of_projection = projection_problems.c.projection
        counted = select(of_projection, func.count()).group_by(of_projection)
        problems = {row[0]: row[1] for row in self.connection.execute(counted)}
        columns = projection_positions.c
        rows = self.connection.execute(select(columns.name, columns.version, columns.sequence).order_by(columns.name))
        return [
            ProjectionStatus(
                name=name, version=version, position=position, lag=end - position, problems=problems.get(name, 0)
            )
            for name, version, position in rows
        ]

    def subscriptions(self, end: int) -> list[Subscription]:
        if subscription_positions.name not in self.tables:
            return []
        return [described(each, end) for each in saved_positions(self.connection)]

    def removed(self) -> int:
        return number_removed(self.connection) if removed_events.name in self.tables else 0

    def running_turns(self) -> int | None:
        if projection_turns.name not in self.tables:
            return None
        from peon.orchestration import TurnStatus  # the events of the domain take long to load

        return self._count(projection_turns, projection_turns.c.status == TurnStatus.RUNNING.value)

    def pending_approvals(self) -> int | None:
        if projection_approvals.name not in self.tables:
            return None
        from peon.orchestration import ApprovalStatus

        return self._count(projection_approvals, projection_approvals.c.status == ApprovalStatus.PENDING.value)

    def _count(self, table: Table, condition: ColumnElement[bool]) -> int:
        visible = visible_if_known(self.connection, table)
        return self.connection.execute(select(func.count()).where(condition, *visible)).scalar_one()
