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
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app import errors, examples
from app.dashboard import router as dashboard
from app.routes import (
    bundles,
    datasets,
    deployments,
    health,
    jobs,
    keys,
    oip,
    predict,
    predictions,
    secrets,
    students,
    teachers,
    traffic,
    trying,
    uploading,
    webhooks,
    workers,
)
from app.security import Guard, Keys, Rules
from app.serving.answering import Answering
from app.serving.batching import Pool
from app.serving.counts import Counts
from app.serving.recorder import Recorder
from app.serving.shadowing import Shadows
from app.serving.shelf import NO_TRAFFIC, Pointer, Shelf
from models import captures, deliveries, lifecycle, logs
from models import secrets as sealed
from models import traffic as live_traffic
from models.artifacts import Store
from models.database import Database
from models.egress import Egress
from models.errors import LimbeckError, Missing
from models.host import cores
from models.queue import Doorbell
from models.runtime import Runtime
from models.secrets import Vault
from models.settings import Settings
from models.specs import Traffic
from models.tables import Deployment, Key, Student

_DESCRIPTION = "Knowledge distillation as a service: submit a job, get a small student with proof, call /predict."
_TALLY_SECONDS = 1.0
_DELIVER_SECONDS = 1.0

log = structlog.get_logger("limbeck.app")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Nothing runs or connects before its lifespan begins. The schema is there already.

    Raises ValueError where a setting cannot be understood.
    """
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
    app.state.vault = Vault.of(settings)
    app.state.egress = Egress.of(settings)
    app.state.keys = Keys(database)
    app.state.metrics = health.Metrics()
    app.state.schema = health.Schema()
    app.state.leaving = False
    for router, limit in _routers(settings):
        app.include_router(router, max_body_size=limit)
    _describe(app)
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
    # Guard and router look through all of them in this order: what is called most stands first.
    yield predict.router, body
    yield datasets.router, upload
    yield teachers.router, upload
    for router in (
        *(oip, health, jobs, bundles, students, trying, deployments, traffic, predictions),
        *(keys, secrets, webhooks, workers, dashboard),
    ):
        yield router.router, body


def _describe(app: FastAPI) -> None:
    """Have the OpenAPI document say what FastAPI does not know: keys are a middleware's, and errors are problems."""
    plain = app.openapi
    app.openapi = lambda: examples.describe(plain())  # type: ignore[method-assign]


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
        _Pointers(database),
        budget_bytes=settings.student_memory_bytes,
    )
    state.counts = counts = Counts()
    state.answering = Answering(shelf, pool, counts)
    state.shadows = shadows = Shadows(shelf, pool, counts)
    state.recorder = recorder = Recorder(captures.Log(database).write)
    stopping = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(app, stopping), name="sweep", daemon=True)
    tallying = threading.Thread(target=_tally, args=(app, stopping), name="tally", daemon=True)
    delivering = threading.Thread(target=_deliver, args=(app, stopping), name="deliver", daemon=True)
    shelf.start()
    sweeper.start()
    tallying.start()
    delivering.start()
    recorder.start()
    log.info("started", version=app.version)
    try:
        yield
    finally:
        state.leaving = True
        stopping.set()
        await shadows.close()
        await asyncio.to_thread(sweeper.join)
        await asyncio.to_thread(tallying.join)
        await asyncio.to_thread(delivering.join)
        await asyncio.to_thread(shelf.close)
        await asyncio.to_thread(pool.close)
        await asyncio.to_thread(recorder.close)
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.to_thread(_put_down, app)
        await asyncio.to_thread(doorbell.close)
        database.close()
        log.info("stopped")


def _open_student(database: Database, store: Store, student_id: str) -> Runtime:
    """A student, or the teacher of one, as the shelf names them."""
    student_id, _, teacher = student_id.partition("/")
    column = Student.teacher_artifact if teacher else Student.artifact
    with database.reading() as session:
        artifact = session.scalar(select(column).where(Student.id == student_id))
    if artifact is None:
        what = (
            f"the student {student_id!r} has no exported teacher" if teacher else f"there is no student {student_id!r}"
        )
        raise Missing(what)
    return Runtime.open(store.fetch_folder(artifact))


class _Pointers:
    """Where every deployment points, read anew with every call. A deployment's traffic is parsed once a version."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._parsed: dict[tuple[str, int], Traffic] = {}

    def __call__(self) -> list[Pointer]:
        columns = (Deployment.id, Deployment.owner, Deployment.name, Deployment.student_id, Deployment.version)
        with self._database.reading() as session:
            rows = session.execute(select(*columns, Deployment.traffic)).all()
        before, self._parsed = self._parsed, {}
        for row in rows:
            key = row.id, row.version
            self._parsed[key] = before.get(key) or _traffic(row.traffic, row.name)
        return [
            Pointer(row.id, row.owner, row.name, row.student_id, row.version, self._parsed[row.id, row.version])
            for row in rows
        ]


def _traffic(document: dict[str, Any], deployment: str) -> Traffic:
    """A deployment's traffic; none where this version cannot read it, for its student must answer nevertheless."""
    if not document:
        return NO_TRAFFIC
    try:
        return Traffic.model_validate(document)
    except ValidationError as error:
        log.warning("a deployment's traffic cannot be read", deployment=deployment, problems=error.error_count())
        return NO_TRAFFIC


def _sweep(app: FastAPI, stopping: threading.Event) -> None:
    """Reap expired leases and ring again for what nobody took, as every process does that has the time."""
    settings: Settings = app.state.settings
    while not stopping.wait(settings.sweep_interval):
        try:
            lifecycle.sweep(app.state.database, app.state.doorbell, settings)
            live_traffic.sweep(app.state.database)
            captures.expire(app.state.database)
            deliveries.sweep(app.state.database)
            app.state.keys.note_use()
        except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
            reason = error.message if isinstance(error, LimbeckError) else type(error).__name__
            log.warning("sweep failed", reason=reason)


def _deliver(app: FastAPI, stopping: threading.Event) -> None:
    """Send what waits in the outbox; first of all, bring what older keys have encrypted under the newest."""
    database: Database = app.state.database
    postman = deliveries.Postman(database, app.state.vault, app.state.egress)
    every = min(_DELIVER_SECONDS, app.state.settings.sweep_interval)
    rotated = False
    while not stopping.wait(every):
        try:
            if not rotated:
                count = sealed.rotate(database, app.state.vault)
                rotated = True
                if count:
                    log.info("secrets_rotated", count=count)
            postman.deliver(stopping)
        except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
            log.warning("webhooks were not sent", error=type(error).__name__)
    postman.close()


def _tally(app: FastAPI, stopping: threading.Event) -> None:
    """Put down what was counted, and promote or end the candidates that it is enough for."""
    database: Database = app.state.database
    while not stopping.wait(_TALLY_SECONDS):
        try:
            _put_down(app)
            for name, student_id, decision in live_traffic.settle(database, partial(_is_healthy, app.state.shelf)):
                log.info(decision.verdict, deployment=name, student=student_id, reason=decision.reason)
        except Exception as error:  # noqa: BLE001 - a database that is away must not end this thread
            log.warning("figures were not written", error=type(error).__name__)


def _put_down(app: FastAPI) -> None:
    counts: Counts = app.state.counts
    database: Database = app.state.database
    totals = counts.totals()
    if not totals:
        return
    try:
        with database.writing() as session:
            gone = live_traffic.write(session, counts.process, totals)
    except BaseException:
        counts.unwritten(totals)
        raise
    counts.forget(gone)


def _is_healthy(shelf: Shelf, student_id: str) -> bool:
    """Whether a candidate is loaded here, which has shown that it can serve. If not, it is asked for."""
    if shelf.at_hand(student_id) is not None:
        return True
    shelf.ask_for(student_id)
    return False


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
    try:
        app = create_app(settings)
    except ValueError as error:
        log.error("a setting cannot be used", reason=str(error))  # noqa: TRY400 - the reason says it all
        return 2
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
