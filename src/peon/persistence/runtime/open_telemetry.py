"""Spans and metrics by OpenTelemetry's API. Needs the extra `otel`; see docs/reference/telemetry.md.

The names follow the semantic conventions for databases
(https://opentelemetry.io/docs/specs/semconv/database/); those without a convention begin with `peon.`.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Token
from pathlib import Path
from types import TracebackType
from typing import Self

from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue
from sqlalchemy import Engine

from peon.persistence.runtime.instrumentation import Operation, OperationName, RetryReason, Telemetry

SCOPE = "peon"
"""The name of the tracer and of the meter."""

SECONDS_BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
"""What the semantic conventions recommend for the duration of database operations."""

LAG_BUCKETS = [0.01, 0.1, 1, 10, 60, 600, 3600, 86400]
"""From a subscription that waits for the next event to one that has been down for a day, in seconds."""

POSTGRESQL_PORT = 5432


class Instruments:
    """The tracer and the instruments of the meter.

    Args:
        tracers: By default the provider that the application has set, or will set.
        meters: By default the provider that the application has set, or will set.
    """

    def __init__(
        self, tracers: trace.TracerProvider | None = None, meters: metrics.MeterProvider | None = None
    ) -> None:
        self.tracer = trace.get_tracer(SCOPE, tracer_provider=tracers)
        meter = metrics.get_meter(SCOPE, meter_provider=meters)
        self.duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.stored = meter.create_counter("peon.events.stored", unit="{event}", description="Events stored.")
        self.lock_wait = meter.create_histogram(
            "peon.lock.wait_time",
            unit="s",
            description="How long a transaction waited for the lock that orders appends.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.retries = meter.create_counter(
            "peon.transaction.retries", unit="{retry}", description="Transactions that were repeated."
        )
        self.subscription_lag = meter.create_histogram(
            "peon.subscription.lag",
            unit="s",
            description="Age of the oldest event that a subscription had not read, at each read.",
            explicit_bucket_boundaries_advisory=LAG_BUCKETS,
        )
        self.projection_lag = meter.create_gauge(
            "peon.projection.lag", unit="{event}", description="Stored events that a projection has not applied."
        )


instruments = Instruments()


class OpenTelemetry(Telemetry):
    """The spans and metrics of one database."""

    def __init__(self, engine: Engine) -> None:
        self.instruments = instruments
        self.attributes = _attributes_of(engine)
        self.by_operation: dict[str, tuple[str, dict[str, AttributeValue]]] = {}

    def operation(self, name: OperationName, **attributes: str) -> Operation:
        known = self.by_operation.get(name)
        if known is None:
            place = self.attributes.get("db.namespace") or self.attributes.get("server.address", "")
            described = {**self.attributes, "db.operation.name": name}
            known = self.by_operation[name] = f"{name} {place}".rstrip(), described
        own = {f"peon.{key.replace('_', '.')}": value for key, value in attributes.items()}
        return _SpannedOperation(self.instruments, *known, own)

    def waited(self, seconds: float) -> None:
        self.instruments.lock_wait.record(seconds, self.attributes)

    def retried(self, reason: RetryReason) -> None:
        self.instruments.retries.add(1, {**self.attributes, "peon.retry.reason": reason})

    def subscription_lag(self, seconds: float, name: str | None) -> None:
        own = {} if name is None else {"peon.subscription.name": name}
        self.instruments.subscription_lag.record(max(seconds, 0.0), {**self.attributes, **own})

    def projection_lag(self, name: str, events: int) -> None:
        self.instruments.projection_lag.set(events, {**self.attributes, "peon.projection.name": name})

    @property
    def is_on(self) -> bool:
        return True


class _SpannedOperation(Operation):
    """An operation with a span, which is current until the operation ends.

    Args:
        attributes: Of the span and of the metrics.
        own: Further attributes, of the span.
    """

    __slots__ = (
        "_attributes",
        "_events",
        "_instruments",
        "_is_repeated",
        "_lock_seconds",
        "_name",
        "_own",
        "_requests",
        "_span",
        "_started",
        "_token",
    )

    def __init__(
        self,
        instruments: Instruments,
        name: str,
        attributes: dict[str, AttributeValue],
        own: dict[str, str],
    ) -> None:
        self._instruments = instruments
        self._name = name
        self._attributes = attributes
        self._own = own
        self._events: int | None = None
        self._requests = 0
        self._lock_seconds = 0.0
        self._is_repeated = False
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._span = self._instruments.tracer.start_span(
            self._name, kind=trace.SpanKind.CLIENT, attributes=self._attributes
        )
        # Without an SDK, or a span of the application, there is nothing that others could belong to.
        if self._span.get_span_context().is_valid:
            self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            context.detach(self._token)
        attributes = self._attributes
        if kind is not None:
            attributes = {**attributes, "error.type": kind.__name__}
        self._instruments.duration.record(time.perf_counter() - self._started, attributes)
        if kind is None and self._is_append and self._events and not self._is_repeated:
            self._instruments.stored.add(self._events, self._attributes)
        if self._span.is_recording():
            self._describe(kind)
        self._span.end()

    def _describe(self, kind: type[BaseException] | None) -> None:
        found: dict[str, AttributeValue] = {**self._own}
        if self._events is not None:
            found["peon.events"] = self._events
            if self._events > 1 and self._is_append:  # the conventions leave out a batch of one
                found["db.operation.batch.size"] = self._events
        if self._is_repeated:
            found["peon.append.repeated"] = True
        if self._requests:
            found["peon.commit.requests"] = self._requests
            found["peon.lock.wait_time"] = self._lock_seconds
        if kind is not None:
            # Without its message: an exception of the application's own may hold a payload.
            found["error.type"] = kind.__name__
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.set_attributes(found)

    @property
    def _is_append(self) -> bool:
        return self._attributes["db.operation.name"] == "append"

    def as_current(self) -> AbstractContextManager[object]:
        return nullcontext() if self._token is None else _current(self._span)

    def handled(self, events: int) -> None:
        self._events = events

    def committed(self, requests: int, lock_seconds: float) -> None:
        self._requests = requests
        self._lock_seconds = lock_seconds

    def repeated(self) -> None:
        self._is_repeated = True


@contextmanager
def _current(span: trace.Span) -> Iterator[None]:
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        context.detach(token)


def _attributes_of(engine: Engine) -> dict[str, AttributeValue]:
    url = engine.url
    found: dict[str, AttributeValue] = {"db.system.name": url.get_backend_name()}
    if url.get_backend_name() == "sqlite":
        # Without its folder, which says whose file it is.
        found["db.namespace"] = Path(url.database or ":memory:").name
    elif url.database:
        found["db.namespace"] = url.database
    if url.host:
        found["server.address"] = url.host
        if url.port not in (None, POSTGRESQL_PORT):
            found["server.port"] = url.port
    return found
