"""Spans and metrics in memory, by OpenTelemetry's SDK."""

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from peon.persistence.runtime.open_telemetry import Instruments


class RecordedTelemetry:
    """What databases record that are opened while `instruments` are in use.

    Attributes:
        tracer: For spans of the application.
    """

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self._meters = MeterProvider([self._reader])
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = tracers.get_tracer("application")
        self.instruments = Instruments(tracers, self._meters)

    def close(self) -> None:
        self._meters.shutdown()

    def forget_spans(self) -> None:
        self._spans.clear()

    def spans(self, operation: str) -> list[ReadableSpan]:
        """Returns the ended spans of an operation, or those that have this name."""
        return [
            span
            for span in self._spans.get_finished_spans()
            if operation in (attributes_of(span).get("db.operation.name"), span.name)
        ]

    def points(self, metric: str) -> list[Any]:
        """Returns the data points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]

    def everything(self) -> str:
        """Returns all that was recorded, as text."""
        data = self._reader.get_metrics_data()
        spans = [span.to_json() for span in self._spans.get_finished_spans()]
        return "\n".join([*spans, data.to_json() if data else ""])


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def identity_of(span: ReadableSpan | trace.Span) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id
