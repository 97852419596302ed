"""Text with NUL characters, which no TEXT column of PostgreSQL can hold."""

from typing import TypeVar

from peon.orchestration import BranchCreated, BranchPushed, ChangesCommitted, CheckpointCreated
from peon.orchestration.events import Event

TextT = TypeVar("TextT", str, str | None)

NUL_SYMBOL = "\N{SYMBOL FOR NULL}"
"""What the columns of the read model hold in the place of a NUL character."""

IDENTIFYING_FIELDS: dict[type[Event], tuple[str, ...]] = {
    CheckpointCreated: ("git_ref",),
    ChangesCommitted: ("commit",),
    BranchCreated: ("name",),
    BranchPushed: ("name", "remote"),
}
"""Text by which git finds something: with another character, it would name another thing."""


def with_visible_nul(text: TextT) -> TextT:
    """Returns the text as the columns of the read model hold it, on every backend.

    A report of a failure often quotes what a program has printed, so it must be storable whatever it contains.
    """
    return text.replace("\0", NUL_SYMBOL) if text else text
