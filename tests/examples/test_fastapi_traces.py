"""A trace of the FastAPI example under load: each append belongs to its request, each statement to an append."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from helpers.recorded_telemetry import RecordedTelemetry, attributes_of, identity_of, parent_of
from opentelemetry import trace
from sqlalchemy import URL, Engine, event

from peon.persistence.runtime import open_telemetry

pytest.importorskip("fastapi")
pytest.importorskip("aiosqlite")
if not (Path(__file__).parents[2] / "examples" / "fastapi_application.py").is_file():
    pytest.skip("the examples are not here: no checkout", allow_module_level=True)

import fastapi_application
from fastapi import Request, Response

REQUESTS = 20


def test_request_append_and_statement(migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = RecordedTelemetry()
    monkeypatch.setattr(open_telemetry, "instruments", recorded.instruments)
    application = fastapi_application.create_application(migrated_lasting_url.render_as_string(hide_password=False))
    statements: list[int] = []

    def begin_statement(*_: object) -> None:
        statements.append(identity_of(trace.get_current_span()))

    @application.middleware("http")
    async def trace_request(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        with recorded.tracer.start_as_current_span("request"):
            return await answer(request)

    async def create_projects() -> None:
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as client,
        ):
            event.listen(Engine, "before_cursor_execute", begin_statement)
            requests = [
                client.post("/projects", json={"name": "tides", "path": "/"}, headers={"Idempotency-Key": str(uuid4())})
                for _ in range(REQUESTS)
            ]
            assert {response.status_code for response in await asyncio.gather(*requests)} == {201}

    try:
        asyncio.run(create_projects())
    finally:
        event.remove(Engine, "before_cursor_execute", begin_statement)
        recorded.close()
    appends = recorded.spans("append")
    assert sorted(parent_of(span) or 0 for span in appends) == sorted(
        identity_of(span) for span in recorded.spans("request")
    )
    assert len(appends) == REQUESTS
    assert max(attributes_of(span)["peon.commit.requests"] for span in appends) > 1
    assert statements
    assert set(statements) <= {identity_of(span) for span in appends}
