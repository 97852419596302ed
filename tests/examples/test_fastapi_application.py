"""Uses the example like one of its clients."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import URL

SCRIPT = Path(__file__).parents[2] / "examples" / "fastapi_application.py"

pytest.importorskip("fastapi")
pytest.importorskip("aiosqlite")
if not SCRIPT.is_file():
    pytest.skip("the examples are not here: no checkout", allow_module_level=True)

import fastapi_application  # noqa: E402
from fastapi import FastAPI  # noqa: E402

from peon.orchestration import Provider, RuntimeMode, ThreadCreated, TurnStarted  # noqa: E402

PATIENCE = 30


@asynccontextmanager
async def running(application: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=application)
    async with (
        asyncio.timeout(PATIENCE),
        application.router.lifespan_context(application),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def application_on(url: URL) -> FastAPI:
    return fastapi_application.create_application(url.render_as_string(hide_password=False))


async def create(client: httpx.AsyncClient, name: str = "tide-table", key: UUID | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": str(key or uuid4())}
    return await client.post("/projects", json={"name": name, "path": "/tide-table"}, headers=headers)


async def rename(client: httpx.AsyncClient, project_id: str, name: str, tag: str) -> httpx.Response:
    return await client.patch(f"/projects/{project_id}", json={"name": name}, headers={"If-Match": tag})


class EventStream:
    """Acts as the server of a request for `/events`: httpx's transport answers only after a response has ended."""

    def __init__(self, application: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._was_sent = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # like uvicorn
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/events",
            "raw_path": b"/events",
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        self.answered = asyncio.create_task(application(scope, self._receive, self._messages.put))

    async def _receive(self) -> dict[str, Any]:
        if not self._was_sent:
            self._was_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def start(self) -> tuple[int, dict[bytes, bytes]]:
        message = await self._messages.get()
        return message["status"], dict(message["headers"])

    async def chunk(self) -> str:
        """Returns the next part of the body, or an empty one at the end."""
        message = await self._messages.get()
        assert bool(message["body"]) is message["more_body"]
        return message["body"].decode()

    async def event(self) -> tuple[int, str, dict[str, Any]]:
        fields = dict(line.split(": ", 1) for line in (await self.chunk()).splitlines() if line)
        return int(fields["id"].partition(":")[2]), fields["event"], json.loads(fields["data"])

    def disconnect(self) -> None:
        self._gone.set()


def thread_in(project_id: UUID, thread_id: UUID) -> ThreadCreated:
    return ThreadCreated(
        thread_id=thread_id,
        project_id=project_id,
        provider=Provider.CLAUDE,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
    )


def is_watched() -> bool:
    return any(thread.name == "peon-watcher" for thread in threading.enumerate())


async def until_waiting(application: FastAPI, count: int = 1) -> None:
    while len(application.state.database.events._notifier._wakes) != count:
        await asyncio.sleep(0.001)


def test_a_repeated_creation_gets_the_first_answer_again(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with running(application_on(url)) as client:
            key = uuid4()
            first, *others = await asyncio.gather(*(create(client, key=key) for _ in range(5)))
            assert first.status_code == 201
            assert [(other.status_code, other.json()) for other in others] == [(201, first.json())] * 4
            conflict = await create(client, name="other", key=key)
            assert conflict.status_code == 409
            assert conflict.json() == {"detail": "this Idempotency-Key belongs to another request"}
            another = await create(client)
            assert another.json() != first.json()
            projects = (await client.get("/projects")).json()
            assert [(project["id"], project["name"]) for project in projects] == [
                (first.json()["id"], "tide-table"),
                (another.json()["id"], "tide-table"),
            ]

    asyncio.run(story())


def test_one_of_two_clients_that_rename_the_same_version_succeeds(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with running(application_on(url)) as client:
            project_id = (await create(client)).json()["id"]
            await create(client, name="another that is none of their business")
            tag = (await client.get(f"/projects/{project_id}")).headers["ETag"]
            await create(client, name="nor is this one")
            both = await asyncio.gather(*(rename(client, project_id, name, tag) for name in ("Tides", "Moons")))
            assert sorted(response.status_code for response in both) == [204, 412]

            [won] = [(name, r) for name, r in zip(("Tides", "Moons"), both, strict=True) if r.status_code == 204]
            assert (await client.get(f"/projects/{project_id}")).json()["name"] == won[0]
            again = await rename(client, project_id, "Winds", won[1].headers["ETag"])
            assert again.status_code == 204
            assert (await client.get(f"/projects/{project_id}")).json()["name"] == "Winds"

    asyncio.run(story())


def test_the_response_says_what_is_wrong_with_a_request() -> None:
    async def story() -> None:
        async with running(fastapi_application.create_application("sqlite://")) as client:
            assert (await client.get(f"/projects/{uuid4()}")).status_code == 404
            assert (await rename(client, str(uuid4()), "Tides", '"0"')).status_code == 404
            for tag in ("*", "1", '"-1"', '"' + "9" * 19 + '"'):
                assert (await rename(client, str(uuid4()), "Tides", tag)).status_code == 422
            for query in ("after=-1", "after=x", f"after={2**63}"):
                assert (await client.get(f"/events?{query}")).status_code == 422
            assert (await client.post("/projects", json={"name": "a", "path": "/"})).status_code == 422
            headers = {"Idempotency-Key": str(uuid4()), "Content-Type": "application/json"}
            surrogate = await client.post("/projects", content=r'{"name": "\ud800", "path": "/"}', headers=headers)
            assert surrogate.status_code == 422
            assert surrogate.json() == {"detail": "the text is no Unicode that can be stored"}
            assert (await client.get("/projects")).json() == []

    asyncio.run(story())


@pytest.mark.postgresql_too("the driver")
def test_the_tokens_of_a_turn_are_events_beside_the_domains_own(url: URL, migrated: None) -> None:
    async def story() -> None:
        application = application_on(url)
        async with running(application) as client:
            project_id = UUID((await create(client)).json()["id"])
            thread_id, turn_id = uuid4(), uuid4()
            started = [thread_in(project_id, thread_id), TurnStarted(turn_id=turn_id, thread_id=thread_id)]
            await application.state.database.events.append_all(started)
            address = f"/threads/{thread_id}/tokens"
            assert (await client.get(address)).json() == {"input_tokens": 0, "output_tokens": 0}

            used = {"model": "a-model", "input_tokens": 1200, "output_tokens": 30}
            key = {"Idempotency-Key": str(uuid4())}
            turn = f"/threads/{thread_id}/turns/{turn_id}/tokens"
            for headers in (key, key, {"Idempotency-Key": str(uuid4())}):
                assert (await client.post(turn, json=used, headers=headers)).status_code == 204
            assert (await client.get(address)).json() == {"input_tokens": 2400, "output_tokens": 60}

            headers = {"Idempotency-Key": str(uuid4())}
            elsewhere = f"/threads/{uuid4()}"
            assert (await client.post(f"{elsewhere}/turns/{turn_id}/tokens", json=used, headers=headers)).json() == {
                "detail": "there is no such project or thread"
            }
            assert (await client.get(f"{elsewhere}/tokens")).status_code == 404
            assert (await client.post(turn, json=used | {"input_tokens": -1}, headers=headers)).status_code == 422

            stream = EventStream(application, "after=3")
            await stream.start()
            sequence, kind, payload = await stream.event()
            assert (sequence, kind, payload["input_tokens"]) == (4, "TurnTokensUsed", 1200)
        await stream.answered

    asyncio.run(story())


def test_events_arrive_as_they_are_stored_until_the_client_disconnects(url: URL, migrated: None) -> None:
    async def story() -> None:
        application = application_on(url)
        async with running(application) as client:
            project_id = (await create(client, name="tides\nmoons")).json()["id"]
            stream, newer = EventStream(application), EventStream(application, "after=1")
            status, headers = await stream.start()
            assert status == 200
            assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
            sequence, kind, payload = await stream.event()
            assert (sequence, kind) == (1, "ProjectCreated")
            assert (payload["project_id"], payload["name"]) == (project_id, "tides\nmoons")

            await newer.start()
            await until_waiting(application, 2)
            await rename(client, project_id, "Tides", '"1"')
            assert await stream.event() == await newer.event()

            for number, one in enumerate((stream, newer)):
                await until_waiting(application, 2 - number)
                one.disconnect()
                await one.answered
            await until_waiting(application, 0)
            while is_watched():
                await asyncio.sleep(0.001)

            log = await application.state.database.events.log_id()
            resumed = EventStream(application, "after=0", {"Last-Event-ID": f"{log}:1"})
            await resumed.start()
            sequence, kind, payload = await resumed.event()
            assert (sequence, kind, payload["name"]) == (2, "ProjectRenamed", "Tides")
        await resumed.answered
        assert not is_watched()

    asyncio.run(story())


def test_a_client_with_a_position_of_another_log_is_told(url: URL, migrated: None) -> None:
    async def story() -> None:
        application = application_on(url)
        async with running(application) as client:
            project_id = (await create(client)).json()["id"]
            before = await application.state.database.events.log_id()
            for headers, query in [({"Last-Event-ID": f"{before}:2"}, ""), ({}, "after=2")]:
                assert (await client.get(f"/events?{query}", headers=headers)).status_code == 409
            await application.state.database.events.renew_log_id()  # as after a restore
            answer = await client.get("/events", headers={"Last-Event-ID": f"{before}:1"})
            assert answer.status_code == 409
            assert "another log" in answer.json()["detail"]
            assert (await rename(client, project_id, "Tides", '"2"')).status_code == 412

    asyncio.run(story())


def test_a_shutdown_ends_the_streams(url: URL, migrated: None) -> None:
    async def story() -> None:
        application = application_on(url)
        async with running(application) as client:
            await create(client)
            streams = [EventStream(application, f"after={after}") for after in (0, 1, 1)]
            for stream in streams:
                await stream.start()
            assert (await streams[0].event())[0] == 1
            await until_waiting(application, 3)
        async with asyncio.timeout(PATIENCE):
            assert [await stream.chunk() for stream in streams] == ["", "", ""]
            await asyncio.gather(*(stream.answered for stream in streams))
        assert not is_watched()

    asyncio.run(story())


def test_a_stream_without_events_sends_keep_alive_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastapi_application, "KEEP_ALIVE", 0.001)

    async def story() -> None:
        application = fastapi_application.create_application("sqlite://")
        async with running(application) as client:
            stream = EventStream(application)
            await stream.start()
            assert [await stream.chunk() for _ in range(3)] == [":\n\n"] * 3
            await create(client)
            while (chunk := await stream.chunk()) == ":\n\n":
                pass
            assert ":1\nevent: ProjectCreated\n" in chunk
        await stream.answered

    asyncio.run(story())


def test_a_locked_database_asks_the_client_to_retry(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "0.01")

    async def story() -> None:
        async with running(application_on(migrated_sqlite_url)) as client:
            key = uuid4()
            with closing(sqlite3.connect(str(migrated_sqlite_url.database), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                refused = await create(client, key=key)
            assert refused.status_code == 503
            assert refused.json() == {"detail": "the database cannot be used now: try again"}
            assert (await create(client, key=key)).status_code == 201
            assert len((await client.get("/projects")).json()) == 1

    asyncio.run(story())
