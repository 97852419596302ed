"""Copies a database into an empty one, possibly of the other backend."""

from peon.persistence.copying.salvage import LostRow, SalvageReport, salvage_database
from peon.persistence.copying.transaction import COPIED_TABLES
from peon.persistence.copying.whole import copy_database

__all__ = ["COPIED_TABLES", "LostRow", "SalvageReport", "copy_database", "salvage_database"]
