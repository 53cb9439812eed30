"""The worker process: `python -P -m worker.main`. Celery's threads pool, or a loop that polls when there is no broker.

Each slot is a thread that serves one job at a time. A sweep reaps expired leases, rings for jobs that nobody took, and
says that this worker lives. SIGTERM drains: no new job, a checkpoint for the running ones, exit 0.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Literal

import structlog
from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from models import lifecycle
from models.artifacts import Store
from models.database import Database
from models.errors import LimbeckError
from models.queue import TASK, Doorbell, celery_app, queue_name
from models.settings import Settings
from models.tables import new_id
from worker.supervisor import Supervisor

log = structlog.get_logger(__name__)

_POLL_EVERY = 0.5


def main() -> int:
    configure_logging()
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    doorbell = Doorbell(settings)
    store = Store(settings.artifacts, settings.cache_folder / "artifacts")
    device = detect_device(settings.device)
    supervisor = Supervisor(
        settings,
        database,
        store,
        doorbell,
        new_id("wk"),
        device=device,
        checkpoint_seconds=min(30.0, settings.lease_ttl),
    )
    sweeping = threading.Thread(target=_sweep, args=(supervisor, doorbell), name="sweep", daemon=True)
    sweeping.start()
    log.info(
        "worker_started",
        worker=supervisor.worker_id,
        device=device,
        slots=settings.slots,
        broker=bool(settings.broker_url),
    )
    try:
        if settings.broker_url:
            _serve_celery(supervisor)
        else:
            _serve_polling(supervisor)
    finally:
        supervisor.draining.set()
        doorbell.close()
        _say_goodbye(supervisor)
        database.close()
    log.info("worker_stopped", worker=supervisor.worker_id)
    return 0


def detect_device(wanted: str) -> Literal["cpu", "gpu"]:
    """Which queue to serve. Asks the driver's tool, since this process loads no torch."""
    if wanted != "auto":
        return "gpu" if wanted == "gpu" else "cpu"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu"
    found = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    return "gpu" if found.returncode == 0 and "GPU" in found.stdout else "cpu"


def configure_logging() -> None:
    """JSON lines on standard error; Celery's own logs go the same way, as warnings and above."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


def _serve(supervisor: Supervisor) -> bool:
    """One job, if one waits; what goes wrong with it must not take the slot along."""
    try:
        return supervisor.serve()
    except (SQLAlchemyError, LimbeckError, OSError) as error:
        log.warning("slot_disturbed", error=type(error).__name__)
        return False


def _serve_celery(supervisor: Supervisor) -> None:
    app = celery_app(supervisor.settings)

    @app.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def distil(job_id: str) -> None:  # noqa: ARG001 - a bell serves the best waiting job: docs/decisions/0002
        _serve(supervisor)

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: Any) -> None:
        supervisor.draining.set()

    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={supervisor.settings.slots}",
            f"--queues={queue_name(supervisor.device)}",
            f"--hostname={supervisor.worker_id}@{socket.gethostname()}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def _serve_polling(supervisor: Supervisor) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.draining.set())
    slots = [
        threading.Thread(target=_poll, args=(supervisor,), name=f"slot-{slot}")
        for slot in range(supervisor.settings.slots)
    ]
    for slot in slots:
        slot.start()
    for slot in slots:
        while slot.is_alive():
            slot.join(0.2)  # with a timeout, so that signals are heard


def _poll(supervisor: Supervisor) -> None:
    while not supervisor.draining.is_set():
        if not _serve(supervisor):
            supervisor.draining.wait(_POLL_EVERY)


def _sweep(supervisor: Supervisor, doorbell: Doorbell) -> None:
    while True:
        try:
            with supervisor.database.writing() as session:
                lifecycle.worker_seen(
                    session,
                    worker_id=supervisor.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    device=supervisor.device,
                    device_name="",
                    slots=supervisor.settings.slots,
                    jobs=supervisor.jobs,
                )
            lifecycle.sweep(supervisor.database, doorbell, supervisor.settings)
        except SQLAlchemyError as error:
            log.warning("sweep_failed", error=type(error).__name__)
        if supervisor.draining.wait(supervisor.settings.sweep_interval):
            return


def _say_goodbye(supervisor: Supervisor) -> None:
    try:
        with supervisor.database.writing() as session:
            lifecycle.worker_left(session, supervisor.worker_id)
    except SQLAlchemyError as error:
        log.warning("goodbye_not_stored", error=type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
