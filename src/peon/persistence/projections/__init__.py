"""Projections: tables that are derived from the log, kept equal to it, and can be rebuilt at any time."""

from peon.persistence.projections.base import Projection, Refusal
from peon.persistence.projections.manager import Projections
from peon.persistence.projections.positions import Problem
from peon.persistence.projections.replay import Progress
from peon.persistence.projections.verification import Difference

__all__ = [
    "Difference",
    "Problem",
    "Progress",
    "Projection",
    "Projections",
    "Refusal",
]
