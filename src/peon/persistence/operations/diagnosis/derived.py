"""Checks of what is derived from the log, and of positions in it."""

import shlex
from collections import Counter

from sqlalchemy import func, select

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.side_tables import SIDE_PREFIX
from peon.persistence.log.pages import LogPages
from peon.persistence.log.query import keys_in
from peon.persistence.operations.diagnosis.findings import Findings, failure, not_checked, warning
from peon.persistence.operations.diagnosis.schema import EMPTY_TAG_INDEX
from peon.persistence.operations.diagnosis.subject import Subject
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.projections import Projections
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import (
    command_receipts,
    event_tags,
    projection_positions,
    projection_problems,
    tag_positions,
    tags,
)
from peon.persistence.subscriptions.administration import saved_positions

RESTORED = "as after a restore of a backup"


def projection_state(subject: Subject) -> Findings:
    """Each projection has applied the log to its end, with this version, and could apply all events."""
    end, ours = subject.end, OrchestrationProjection()
    rebuild = f"run  {subject.peon('rebuild')}"
    columns = projection_positions.c
    with subject.reading() as connection:
        positions = connection.execute(select(columns.name, columns.version, columns.sequence).order_by(columns.name))
        found = {name: (version, sequence) for name, version, sequence in positions}
        by_projection = select(
            projection_problems.c.projection, func.count(), func.min(projection_problems.c.sequence)
        ).group_by(projection_problems.c.projection)
        problems = connection.execute(by_projection.order_by(projection_problems.c.projection)).all()
    if ours.name not in found and end:
        yield warning(f"the projection {ours.name} has no position", rebuild)
    for name, (version, sequence) in found.items():
        if sequence > end:
            yield failure(
                f"the projection {name} has applied {counted(sequence, 'event')}, and the log ends with {end:,}, "
                f"{RESTORED}",
                f"{rebuild} ; applications also do when they open the database",
            )
        elif sequence < end:
            yield warning(
                f"the projection {name} is {counted(end - sequence, 'event')} behind",
                f"open the database with an application, or {rebuild}",
            )
        if name == ours.name and version != ours.version:
            age = "a newer" if version > ours.version else "an older"
            fix = "install that version" if version > ours.version else rebuild
            yield warning(f"{age} version of peon has built the projection {name}", fix)
    for name, count, first in problems:
        yield warning(
            f"the projection {name} could not apply {counted(count, 'event')}, the first is {first}",
            "see the table projection_problems for the reasons",
        )
    return f"at event {end:,}"


def projection_rows(subject: Subject) -> Findings:
    """Peon's projection is equal to what the log says."""
    engine = subject.database.engine
    found = Projections(engine, [OrchestrationProjection()], orchestration_codec).verify(subject.report)
    # `verify` also reports each problem that is recorded as it should be. Another check has counted those.
    differences = [each for each in found if each.table != projection_problems.name or each.expected is not None]
    if differences:
        counts = Counter(each.table for each in differences)
        shown = ", ".join(f"{count:,} in {name}" for name, count in sorted(counts.items()))
        yield failure(
            f"{len(differences):,} values differ from the log: {shown}; the first row is {differences[0].key}",
            f"see them with  {subject.peon('verify')} , then run  {subject.peon('rebuild')}",
        )
    return "equal to the log"


def side_tables(subject: Subject) -> Findings:
    """Tables that a killed rebuild has left are mentioned: they only take space, and the next rebuild removes them."""
    found = [name for name in subject.tables if name.startswith(SIDE_PREFIX)]
    yield from ()
    if not found:
        return "none"
    number = counted(len(found), "table")
    return f"{number} named {SIDE_PREFIX}…: a rebuild is running, or was killed, and the next one removes them"


def subscriptions(subject: Subject) -> Findings:
    """No durable subscription is beyond the end of the log."""
    end = subject.end
    with subject.reading() as connection:
        found = saved_positions(connection)
    for each in found:
        if each.sequence > end:
            yield failure(
                f"the subscription {each.name!r:.100} has handled {counted(each.sequence, 'event')}, and the log ends "
                f"with {end:,}, {RESTORED}",
                f"run  {subject.peon(f'subscriptions set-position {shlex.quote(each.name)} {end}')}",
            )
    return counted(len(found), "subscription")


def command_receipts_in_log(subject: Subject) -> Findings:
    """The events of each command are in the log."""
    last = command_receipts.c.first_sequence + command_receipts.c.events - 1
    end = subject.end
    with subject.reading() as connection:
        count = connection.scalar(select(func.count()).select_from(command_receipts).where(last > end))
    if count:
        yield failure(
            f"{counted(count, 'command is', 'commands are')} recorded as done whose events are beyond the end of the "
            f"log, {RESTORED}",
            f"run  DELETE FROM command_receipts WHERE first_sequence + events > {end + 1}  to repeat them",  # noqa: S608
        )
    return "in the log"


def tag_index(subject: Subject) -> Findings:
    """The index of tags has exactly the entries that the log gives, up to its position."""
    end = subject.end
    with subject.reading() as connection:
        found = connection.execute(select(tag_positions.c.name, tag_positions.c.sequence))
        positions: dict[str, int] = {row[0]: row[1] for row in found}
        of_tag = (tags.c.name, tags.c.value)
        rows = connection.execute(
            select(*of_tag, func.count(), func.sum(event_tags.c.sequence), func.max(event_tags.c.sequence))
            .select_from(event_tags.outerjoin(tags, tags.c.id == event_tags.c.tag_id))
            .group_by(event_tags.c.tag_id, *of_tag)
        ).all()
    # The number and the sum of the sequences of each tag: only a deliberate change keeps both.
    indexed = {(name, value): (count, int(total)) for name, value, count, total, _ in rows}
    beyond = [name for name, position in positions.items() if position > end]
    if beyond:
        yield failure(
            f"the index of {', '.join(sorted(beyond))} is beyond the end of the log, {RESTORED}", EMPTY_TAG_INDEX
        )
        return ""
    if any(name is None or last > positions.get(name, 0) for name, _, _, _, last in rows):
        yield failure("the index has entries without a tag, or beyond its position", EMPTY_TAG_INDEX)
        return ""
    if not positions:
        yield not_checked("no query has used it yet")
        return ""
    expected = _tags_in_log(subject, positions)
    wrong = sum(indexed.get(tag) != expected.get(tag) for tag in indexed.keys() | expected.keys())
    if wrong:
        have = "has" if wrong == 1 else "have"
        reason = f"{wrong:,} of {counted(len(expected), 'tag')} {have} other entries than the log gives"
        yield failure(reason, EMPTY_TAG_INDEX)
    return counted(len(expected), "tag")


def _tags_in_log(subject: Subject, positions: dict[str, int]) -> dict[tuple[str, str], tuple[int, int]]:
    engine = subject.database.engine
    until = max(positions.values())
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for page in LogPages(engine, DriverErrors(engine)).read(0, None):
        subject.report(min(page[0][0], until), until)
        for sequence, event_type, payload, _ in page:
            for name, values in keys_in(event_type, payload, positions).items():
                for value in values if sequence <= positions[name] else ():
                    count, total = found.get((name, value), (0, 0))
                    found[name, value] = (count + 1, total + sequence)
        if page[-1][0] >= until:
            break
    return found
