"""What a check has found."""

from collections.abc import Generator
from enum import StrEnum
from typing import NamedTuple, TypeAlias


class Outcome(StrEnum):
    """How a check has ended.

    Attributes:
        OK: Nothing is wrong.
        WARNING: Every promise is kept, but something should be changed.
        FAILURE: A promise is broken, or soon will be.
        NOT_CHECKED: The check needs something that is not there, such as a table of a newer revision.
    """

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    NOT_CHECKED = "not checked"


class Finding(NamedTuple):
    """One thing that a check has found.

    Attributes:
        outcome: How serious it is.
        reason: What was found, without a payload.
        advice: What to do, with the command; empty if nothing is wrong, or if the reason says it.
    """

    outcome: Outcome
    reason: str
    advice: str = ""


Findings: TypeAlias = Generator[Finding, None, str]
"""Yields what is wrong, and returns what is said if nothing is."""


def warning(reason: str, advice: str) -> Finding:
    return Finding(Outcome.WARNING, reason, advice)


def failure(reason: str, advice: str) -> Finding:
    return Finding(Outcome.FAILURE, reason, advice)


def not_checked(reason: str) -> Finding:
    return Finding(Outcome.NOT_CHECKED, reason)
