"""Serves projects and the tokens that threads have used over HTTP, and the events of the log as they are stored.

    uvicorn --factory --timeout-graceful-shutdown 1 fastapi_application:create_application

It needs `pip install '.[async,examples]' uvicorn`, and runs in this folder. The database is the configured one.
Without that timeout uvicorn does not shut down before the last browser has left `/events`.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid5

from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from token_usage import AppEvent, TokenCount, TokensPerThread, TokenUsage, TurnTokensUsed, codec, tokens_of_thread

from peon.orchestration import Project, ProjectCreated, ProjectRenamed
from peon.persistence import AppendCondition, EventQuery, errors
from peon.persistence.asynchronous import AsyncDatabase

KEEP_ALIVE = 15.0
"""Seconds without an event after which a stream sends a comment: proxies close silent connections."""

OTHER_LOG = "this position is of another log: discard the events that you have, and read from the beginning"
"""A browser's `EventSource` does not connect again after such an answer."""

ANSWERS: dict[type[Exception], tuple[int, str]] = {
    errors.CommandConflict: (409, "this Idempotency-Key belongs to another request"),
    errors.ConcurrencyError: (412, "the project has changed: read it again"),
    errors.PositionBeyondEnd: (412, "the log was restored: read the project again"),
    errors.ProjectionError: (404, "there is no such project or thread"),
    errors.EventEncodeError: (422, "the text is no Unicode that can be stored"),
    errors.StoreUnavailable: (503, "the database cannot be used now: try again"),
}

logger = logging.getLogger(__name__)
router = APIRouter()


def database_of(request: Request) -> AsyncDatabase[AppEvent]:
    database: AsyncDatabase[AppEvent] = request.app.state.database
    return database


Text = Annotated[str, Body(embed=True)]
Count = Annotated[TokenCount, Body()]
Database = Annotated[AsyncDatabase[AppEvent], Depends(database_of)]
CommandIdentifier = Annotated[UUID, Header(alias="Idempotency-Key")]
EntityTag = Annotated[str, Header(alias="If-Match", pattern=r'^"[0-9]{1,18}"$')]
LastEvent = Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9a-f-]{36}:[0-9]{1,18}$")]
Sequence = Annotated[int, Query(ge=0, lt=2**63)]


@router.post("/projects", status_code=201)
async def create_project(name: Text, path: Text, key: CommandIdentifier, database: Database) -> dict[str, UUID]:
    # Derived from the command: with a random identifier, each repetition would be another command.
    project_id = uuid5(key, "project")
    created = ProjectCreated(project_id=project_id, name=name, path=path)
    await database.events.append_all([created], command_id=key)
    return {"id": project_id}


@router.get("/projects")
async def list_projects(database: Database) -> list[Project]:
    return await database.read_model.projects()


@router.get("/projects/{project_id}")
async def show_project(project_id: UUID, database: Database, response: Response) -> Project:
    # Read before the project, so that events which are stored in between are a conflict.
    response.headers["ETag"] = f'"{await database.events.last_sequence()}"'
    project = await database.read_model.project(project_id)
    if project is None:
        raise HTTPException(404, "there is no such project")
    return project


@router.patch("/projects/{project_id}", status_code=204)
async def rename_project(project_id: UUID, name: Text, tag: EntityTag, database: Database, response: Response) -> None:
    condition = AppendCondition(EventQuery(project_id=project_id), after=int(tag.strip('"')))
    renamed = ProjectRenamed(project_id=project_id, name=name)
    [stored] = await database.events.append_all([renamed], condition=condition)
    response.headers["ETag"] = f'"{stored.sequence}"'


@router.post("/threads/{thread_id}/turns/{turn_id}/tokens", status_code=204)
async def report_tokens(
    thread_id: UUID,
    turn_id: UUID,
    model: Text,
    input_tokens: Count,
    output_tokens: Count,
    key: CommandIdentifier,
    database: Database,
) -> None:
    used = TurnTokensUsed(
        turn_id=turn_id, thread_id=thread_id, model=model, input_tokens=input_tokens, output_tokens=output_tokens
    )
    await database.events.append_all([used], command_id=key)


@router.get("/threads/{thread_id}/tokens")
async def show_tokens(thread_id: UUID, database: Database) -> TokenUsage:
    async with database.read_transaction() as connection:
        used = await connection.run_sync(tokens_of_thread, thread_id)
    if used is None:
        raise HTTPException(404, "there is no such thread")
    return used


@router.get("/events")
async def stream_events(database: Database, after: Sequence = 0, last: LastEvent = None) -> StreamingResponse:
    # A position means something only in its own log. After a restore, the log has a new identity.
    log = str(await database.events.log_id())
    if last is not None:
        of_log, _, sequence = last.partition(":")
        if of_log != log:
            raise HTTPException(409, OTHER_LOG)
        after = int(sequence)
    if after > await database.events.last_sequence():
        raise HTTPException(409, OTHER_LOG)
    messages = event_messages(database, log, after)
    return StreamingResponse(messages, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def event_messages(database: AsyncDatabase[AppEvent], log: str, after: int) -> AsyncIterator[str]:
    """Yields stored events, then new ones, until the client disconnects or the database is closed."""
    async with database.events.subscribe(after=after) as subscription:
        try:
            async for batch in subscription.batches(timeout=KEEP_ALIVE):
                for sequence, event, _ in batch:
                    yield f"id: {log}:{sequence}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
                if not batch:
                    yield ":\n\n"
        except errors.StoreUnavailable:
            return  # a browser connects again, and sends the last identifier that it has seen


async def answer(_: Request, error: Exception) -> JSONResponse:
    status, detail = ANSWERS[type(error)]
    logger.log(logging.ERROR if status == 503 else logging.INFO, "%s", error)
    return JSONResponse({"detail": detail}, status)


def create_application(url: str | None = None) -> FastAPI:
    """Returns the application; by default, with the configured database."""

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        projections = [TokensPerThread()]
        async with await AsyncDatabase.open(url=url, codec=codec, projections=projections) as database:
            application.state.database = database
            yield

    application = FastAPI(lifespan=lifespan)
    application.include_router(router)
    for error in ANSWERS:
        application.add_exception_handler(error, answer)
    return application
