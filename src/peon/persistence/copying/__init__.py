"""Copies a database into an empty one, possibly of the other backend, and a log to a file and back."""

from peon.persistence.copying.exporting import ExportReport, export_log
from peon.persistence.copying.importing import ImportReport, import_log
from peon.persistence.copying.salvage import LostRow, SalvageReport, salvage_database
from peon.persistence.copying.transaction import COPIED_TABLES
from peon.persistence.copying.whole import copy_database

__all__ = [
    "COPIED_TABLES",
    "ExportReport",
    "ImportReport",
    "LostRow",
    "SalvageReport",
    "copy_database",
    "export_log",
    "import_log",
    "salvage_database",
]
