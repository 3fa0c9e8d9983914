"""OpenTelemetry with an exporter that keeps spans in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler


@contextmanager
def exported(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler = ALWAYS_ON
) -> Iterator[Callable[[], Sequence[ReadableSpan]]]:
    """Switch tracing on; yield a function that returns the spans of this package and of the test, as they ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry itself takes a provider once in a process.
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)

    def ours() -> Sequence[ReadableSpan]:
        scopes = {"ollama_provider", "test"}
        return [span for span in exporter.get_finished_spans() if span.instrumentation_scope.name in scopes]

    yield ours


def text_of(span: ReadableSpan) -> str:
    """Return all that a span says."""
    return span.to_json()
