"""The telemetry of a database: OpenTelemetry's, if it is installed and not switched off."""

import os
from collections.abc import Callable
from functools import cache

from sqlalchemy import Engine

from peon.persistence.runtime.instrumentation import Telemetry

SWITCH = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
"""The variable that lists, separated by commas, what OpenTelemetry leaves alone; `peon` switches this package off."""

_OFF = Telemetry()


def telemetry_of(engine: Engine) -> Telemetry:
    """Returns the telemetry of the engine's database, which does nothing unless the extra `otel` is installed."""
    is_off = "peon" in os.environ.get(SWITCH, "").replace(" ", "").split(",")
    create = None if is_off else _open_telemetry()
    return _OFF if create is None else create(engine)


@cache
def _open_telemetry() -> Callable[[Engine], Telemetry] | None:
    """Returns the class that uses OpenTelemetry; `None` if that is not installed, or is too old."""
    try:
        from peon.persistence.runtime.open_telemetry import OpenTelemetry
    except (ImportError, AttributeError, TypeError):
        return None
    return OpenTelemetry
