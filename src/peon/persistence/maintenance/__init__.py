"""Keeps a database small while applications use it."""

from peon.persistence.log.removed import RemovedEvents, SequenceRange
from peon.persistence.maintenance.compaction import Compaction
from peon.persistence.maintenance.maintenance import Maintenance
from peon.persistence.maintenance.vacuum import Vacuum

__all__ = ["Compaction", "Maintenance", "RemovedEvents", "SequenceRange", "Vacuum"]
