"""Keeps a database small, and redacts it, while applications use it."""

from peon.persistence.log.redacted import RecordedRedaction
from peon.persistence.log.removed import RemovedEvents, SequenceRange
from peon.persistence.maintenance.compaction import Compaction
from peon.persistence.maintenance.maintenance import Maintenance
from peon.persistence.maintenance.redaction import Redaction
from peon.persistence.maintenance.vacuum import Vacuum

__all__ = [
    "Compaction",
    "Maintenance",
    "RecordedRedaction",
    "Redaction",
    "RemovedEvents",
    "SequenceRange",
    "Vacuum",
]
