"""Log records: loggers with stable names, facts as fields, and handlers that cannot harm the caller."""

import logging
import traceback
from threading import local

CONNECTIONS = logging.getLogger("peon.connections")
INDEX = logging.getLogger("peon.index")
MIGRATIONS = logging.getLogger("peon.migrations")
PROJECTIONS = logging.getLogger("peon.projections")
TRANSACTIONS = logging.getLogger("peon.transactions")

_reporting = local()


def report(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Logs a message, with `fields` as attributes of the record, whose names begin with `peon_`.

    The caller is not affected by what handlers do. An exception that a handler raises is printed to stderr, as
    `logging` does with those that it catches itself. If a handler uses a store, and that use would be logged as well,
    those records are dropped: otherwise the handler could call itself without end.

    Args:
        message: Refers to the fields, as in `%(database)s`.
    """
    if not logger.isEnabledFor(level) or getattr(_reporting, "is_under_way", False):
        return
    _reporting.is_under_way = True
    try:
        logger.log(
            level, message, fields, extra={f"peon_{name}": value for name, value in fields.items()}, stacklevel=2
        )
    except Exception:
        if logging.raiseExceptions:
            traceback.print_exc()
    finally:
        _reporting.is_under_way = False
