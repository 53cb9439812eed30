"""The process that answers: `python -P -m app.main --host 127.0.0.1 --port 8000`, or any ASGI server with the factory
`app.main:create_app`. It has no torch, and prints nothing but JSON lines on standard error.
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app import errors
from app.routes import (
    datasets,
    deployments,
    health,
    jobs,
    keys,
    later,
    predict,
    students,
    teachers,
    uploading,
    workers,
)
from app.security import Guard, Keys, Rules
from app.serving.batching import Pool
from app.serving.shelf import Pointer, Shelf
from models import lifecycle, logs
from models.artifacts import Store
from models.database import Database
from models.errors import LimbeckError, Missing
from models.host import cores
from models.queue import Doorbell
from models.runtime import Runtime
from models.settings import Settings
from models.tables import Deployment, Key, Student

_DESCRIPTION = "Knowledge distillation as a service: submit a job, get a small student with proof, call /predict."

log = structlog.get_logger("limbeck.app")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Nothing runs or connects before its lifespan begins. The schema is there already."""
    settings = settings or Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    app = FastAPI(
        title="Limbeck",
        version=version("limbeck-server"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # the pages of FastAPI load their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.keys = Keys(database)
    app.state.metrics = health.Metrics()
    app.state.schema = health.Schema()
    app.state.leaving = False
    for router, limit in _routers(settings):
        app.include_router(router, max_body_size=limit)
    _describe_keys(app)
    rules = Rules.of(app, max_body_bytes=settings.max_body_bytes)
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(Guard, keys=app.state.keys, rules=rules)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False)
    app.add_middleware(errors.Problems)
    return app


def _routers(settings: Settings) -> Iterator[tuple[APIRouter, int]]:
    """Each router with the largest body that its routes take. The limit stands behind the guard."""
    body, upload = settings.max_body_bytes, settings.max_upload_bytes + uploading.FORM_SLACK
    yield datasets.router, upload
    yield teachers.router, upload
    for router in (jobs, students, deployments, predict, keys, workers, health, later):
        yield router.router, body


def _describe_keys(app: FastAPI) -> None:
    """Say in the OpenAPI document what a key is: the guard is a middleware, of which FastAPI knows nothing."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "lk_…"}
        document.setdefault("components", {})["securitySchemes"] = {"key": scheme}
        return document

    app.openapi = described  # type: ignore[method-assign]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    settings: Settings = state.settings
    database: Database = state.database
    state.store = store = Store(settings.artifacts, settings.cache_folder / "artifacts")
    state.doorbell = doorbell = Doorbell(settings)
    state.pool = pool = Pool(cores(), settings.predict_queue)
    state.shelf = shelf = Shelf(
        lambda student_id: _open_student(database, store, student_id),
        lambda: _pointers(database),
        budget_bytes=settings.student_memory_bytes,
    )
    stopping = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(app, stopping), name="sweep", daemon=True)
    shelf.start()
    sweeper.start()
    log.info("started", version=app.version)
    try:
        yield
    finally:
        state.leaving = True
        stopping.set()
        await asyncio.to_thread(sweeper.join)
        await asyncio.to_thread(shelf.close)
        await asyncio.to_thread(pool.close)
        await asyncio.to_thread(doorbell.close)
        database.close()
        log.info("stopped")


def _open_student(database: Database, store: Store, student_id: str) -> Runtime:
    with database.reading() as session:
        artifact = session.scalar(select(Student.artifact).where(Student.id == student_id))
    if artifact is None:
        raise Missing(f"there is no student {student_id!r}")
    return Runtime.open(store.fetch_folder(artifact))


def _pointers(database: Database) -> list[Pointer]:
    columns = (Deployment.id, Deployment.owner, Deployment.name, Deployment.student_id, Deployment.version)
    with database.reading() as session:
        return [Pointer(*row) for row in session.execute(select(*columns))]


def _sweep(app: FastAPI, stopping: threading.Event) -> None:
    """Reap expired leases and ring again for what nobody took, as every process does that has the time."""
    settings: Settings = app.state.settings
    while not stopping.wait(settings.sweep_interval):
        try:
            lifecycle.sweep(app.state.database, app.state.doorbell, settings)
            app.state.keys.note_use()
        except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
            reason = error.message if isinstance(error, LimbeckError) else type(error).__name__
            log.warning("sweep failed", reason=reason)


# --- the command ------------------------------------------------------------------------------------------------------


class Serve(BaseSettings):
    """Answer the HTTP API."""

    model_config = SettingsConfigDict(env_prefix="LIMBECK_", frozen=True, extra="ignore", cli_kebab_case=True)

    host: str = Field("127.0.0.1", description="address to listen on; others than loopback need a key to exist")
    port: int = Field(8000, ge=0, le=65535)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT: waiting polls are answered, requests finish, then everything is closed."""
    logs.configure()
    where = CliApp.run(Serve, cli_args=sys.argv[1:] if arguments is None else arguments)
    settings = Settings()
    app = create_app(settings)
    try:
        guarded = _is_loopback(where.host) or _has_key(app.state.database)
    except SQLAlchemyError as error:
        log.error("the database is not ready", reason=type(error).__name__, hint="run app.admin migrate")  # noqa: TRY400
        return 2
    if not guarded:
        log.error(
            "no key exists: refusing an address that others can reach", host=where.host, hint="app.admin first-key"
        )
        return 2
    config = uvicorn.Config(
        app,
        host=where.host,
        port=where.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout),
    )
    # Once it has stopped, uvicorn sends itself the signal again. To have been asked to stop is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    asyncio.run(_serve(uvicorn.Server(config), app))
    return 0


async def _serve(server: uvicorn.Server, app: FastAPI) -> None:
    async def watch() -> None:
        while not server.should_exit:  # noqa: ASYNC110 - uvicorn has a flag, and no event
            await asyncio.sleep(0.05)
        app.state.leaving = True

    watching = asyncio.create_task(watch())
    try:
        await server.serve()
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    with contextlib.suppress(OSError):
        return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    return False


def _has_key(database: Database) -> bool:
    with database.reading() as session:
        return bool(session.scalar(select(func.count()).select_from(Key).where(Key.revoked_at.is_(None))))


if __name__ == "__main__":
    sys.exit(main())
