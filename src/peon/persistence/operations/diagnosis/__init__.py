"""Examines a database in whatever state it is: one function for each check. Nothing is written."""

from peon.persistence.operations.diagnosis.checks import CHECKS, Check, Diagnosed, diagnose
from peon.persistence.operations.diagnosis.findings import Finding, Outcome

__all__ = ["CHECKS", "Check", "Diagnosed", "Finding", "Outcome", "diagnose"]
