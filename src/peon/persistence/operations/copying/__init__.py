"""Copies a database into an empty one, possibly of the other backend, and a log to a file and back."""

from peon.persistence.operations.copying.exporting import ExportReport, export_log
from peon.persistence.operations.copying.importing import ImportReport, import_log
from peon.persistence.operations.copying.salvage import LostRow, SalvageReport, salvage_database
from peon.persistence.operations.copying.transaction import COPIED_TABLES
from peon.persistence.operations.copying.whole import copy_database

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
