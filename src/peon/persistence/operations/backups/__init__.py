"""Backs up and restores whole databases."""

from peon.persistence.operations.backups.backing_up import BackupReport, back_up_database
from peon.persistence.operations.backups.restoring import RestoreReport, ResumedSubscription, restore_database

__all__ = ["BackupReport", "RestoreReport", "ResumedSubscription", "back_up_database", "restore_database"]
