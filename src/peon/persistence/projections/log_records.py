"""What is logged about a projection. See docs/reference/logging.md."""

import logging
from collections.abc import Sequence

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import database_name, explain
from peon.persistence.projections.base import Projection
from peon.persistence.runtime.log_records import PROJECTIONS, report

REPORTED_SEQUENCES = 10
"""Sequences of events that could not be applied in one record; `Projections.problems` returns all."""

_NAME = "projection %(projection)s of %(database)s"


class ProjectionLog:
    """Logs what happens to one projection."""

    def __init__(self, engine: Engine, projection: Projection) -> None:
        self._facts = {"projection": projection.name, "database": database_name(engine)}

    def is_behind(self, events: int) -> None:
        message = f"{_NAME} is behind the log by %(events)d: catching up"
        report(PROJECTIONS, logging.INFO, message, **self._facts, events=events)

    def caught_up(self, events: int, seconds: float) -> None:
        message = f"{_NAME} caught up in %(seconds).3f s (events: %(events)d)"
        report(PROJECTIONS, logging.INFO, message, **self._facts, events=events, seconds=seconds)

    def begins_rebuild(self, reason: str) -> None:
        report(PROJECTIONS, logging.INFO, f"rebuilding {_NAME}: %(reason)s", **self._facts, reason=reason)

    def rebuilt(self, events: int, seconds: float) -> None:
        message = f"rebuilt {_NAME} in %(seconds).3f s (events: %(events)d)"
        report(PROJECTIONS, logging.INFO, message, **self._facts, events=events, seconds=seconds)

    def has_unusable_tables(self, error: BaseException) -> None:
        message = f"the tables of {_NAME} are unusable: %(reason)s"
        report(PROJECTIONS, logging.WARNING, message, **self._facts, reason=explain(error))

    def creates_tables_again(self) -> None:
        message = f"creating the tables of {_NAME} again: they are damaged, missing or of another shape"
        report(PROJECTIONS, logging.WARNING, message, **self._facts)

    def keeps_old_rows(self, error: BaseException) -> None:
        message = f"the old rows of {_NAME} could not be removed; its next rebuild removes them: %(reason)s"
        report(PROJECTIONS, logging.WARNING, message, **self._facts, reason=explain(error))

    def copies_rows(self) -> None:
        message = (
            f"{_NAME} has been read without a pause for a minute, so its tables could not be replaced: appends wait "
            "while their rows are copied"
        )
        report(PROJECTIONS, logging.WARNING, message, **self._facts)

    def could_not_apply(self, sequences: Sequence[int]) -> None:
        """Logs which events could not be applied, without the reasons: a projection may quote a payload in them."""
        message = (
            f"{_NAME} could not apply some events: %(events)d, the first at %(sequence)d; projections.problems() "
            "lists them with the reasons"
        )
        facts = {**self._facts, "sequence": sequences[0], "sequences": sequences[:REPORTED_SEQUENCES]}
        report(PROJECTIONS, logging.WARNING, message, **facts, events=len(sequences))
