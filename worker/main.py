"""The worker process: `python -P -m worker.main`.

Each slot serves one job at a time. A slot is woken by Celery, when a bell rings, and looks by itself every few seconds;
without a broker it looks twice a second. So a bell that is lost, or a broker that is away, costs seconds. A sweep reaps
expired leases, rings for jobs that nobody took, and says that this worker lives. SIGTERM and SIGINT drain: no new job,
a checkpoint for the running ones, exit 0.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from models import lifecycle, logs, workers
from models.artifacts import Store
from models.database import Database
from models.errors import LimbeckError
from models.host import processor
from models.queue import TASK, Doorbell, celery_app, queue_name
from models.settings import Settings
from models.tables import new_id
from worker.supervisor import Supervisor

_POLL_EVERY = 0.5
_LOOK_EVERY = 0.2
_PAUSE_AFTER_GARBAGE = 1.0
_ASK_DRIVER_SECONDS = 20
_TIDY_EVERY_SWEEPS = 12

log = structlog.get_logger("limbeck.worker")


def main() -> int:
    logs.configure()
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    doorbell = Doorbell(settings)
    gpus = find_gpus() if settings.device != "cpu" else {}
    supervisor = Supervisor(
        settings,
        database,
        Store(settings.artifacts, settings.cache_folder / "artifacts"),
        doorbell,
        new_id("wk"),
        device="gpu" if settings.device == "gpu" or gpus else "cpu",
        gpus=_visible(gpus),
        checkpoint_seconds=min(30.0, settings.lease_ttl),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.draining.set())  # Celery puts its own in their place
    device_name = next(iter(gpus.values()), "") or processor()
    sweeping = threading.Thread(target=_sweep, args=(supervisor, doorbell, device_name), name="sweep", daemon=True)
    sweeping.start()
    log.info(
        "worker_started",
        worker=supervisor.worker_id,
        device=supervisor.device,
        device_name=device_name,
        slots=settings.slots,
        broker=bool(settings.broker_url),
    )
    slots = _start_slots(supervisor)
    try:
        if settings.broker_url:
            _listen_for_bells(supervisor)
        else:
            # Not by waiting for the event: the handler sets it in this very thread, which would hold its lock.
            while not supervisor.draining.is_set():
                time.sleep(_LOOK_EVERY)
    finally:
        supervisor.draining.set()
        for slot in slots:
            slot.join()
        sweeping.join()
        doorbell.close()
        _say_goodbye(supervisor)
        database.close()
    log.info("worker_stopped", worker=supervisor.worker_id)
    return 0


def find_gpus() -> dict[str, str]:
    """The GPUs of this machine, index to name, by the driver's own tool: this process loads no torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"0": "NVIDIA"} if Path("/dev/nvidia0").exists() else {}
    question = [tool, "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=_ASK_DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(",") for line in answer.stdout.splitlines() if "," in line)
    return {index.strip(): name.strip() for index, _, name in lines}


def _visible(gpus: dict[str, str]) -> list[str]:
    """Those that the operator lets this worker see; slots are spread over them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(gpus) if visible is None else [part.strip() for part in visible.split(",") if part.strip()]


# --- serving ----------------------------------------------------------------------------------------------------------


def _start_slots(supervisor: Supervisor) -> list[threading.Thread]:
    every = supervisor.settings.sweep_interval if supervisor.settings.broker_url else _POLL_EVERY
    slots = [
        threading.Thread(target=_look, args=(supervisor, every), name=f"slot-{slot}")
        for slot in range(supervisor.settings.slots)
    ]
    for slot in slots:
        slot.start()
    return slots


def _look(supervisor: Supervisor, every: float) -> None:
    while not supervisor.draining.is_set():
        _serve(supervisor)
        supervisor.draining.wait(every)


def _serve(supervisor: Supervisor) -> None:
    """Job after job, until none waits or no slot is free; what goes wrong must not take the slot along."""
    try:
        while not supervisor.draining.is_set() and supervisor.serve():
            pass
    except Exception as error:
        known = isinstance(error, SQLAlchemyError | LimbeckError | OSError)
        log.warning("slot_disturbed", error=type(error).__name__, exc_info=None if known else error)


def _listen_for_bells(supervisor: Supervisor) -> None:
    """Celery in this thread, until a signal ends it. A message that it cannot read ends it too, and it begins again."""

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: Any) -> None:
        supervisor.draining.set()

    @signals.setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def leave_logging_alone(**_: Any) -> None:
        """That somebody is connected is what tells Celery."""

    while not supervisor.draining.is_set():
        _consumer(supervisor).start()
        if not supervisor.draining.is_set():
            log.warning("bells_interrupted")
            time.sleep(_PAUSE_AFTER_GARBAGE)


def _consumer(supervisor: Supervisor) -> Any:
    app = celery_app(supervisor.settings)

    @app.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def distil(job_id: str) -> None:  # noqa: ARG001 - a bell serves the best waiting job: docs/decisions/0002
        _serve(supervisor)

    return app.Worker(
        hostname=f"{supervisor.worker_id}@{socket.gethostname()}",
        pool_cls="threads",
        concurrency=supervisor.settings.slots,
        queues=[queue_name(device) for device in workers.serves(supervisor.device)],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )


# --- the sweep --------------------------------------------------------------------------------------------------------


def _sweep(supervisor: Supervisor, doorbell: Doorbell, device_name: str) -> None:
    sweeps = 0
    while True:
        try:
            with supervisor.database.writing() as session:
                workers.seen(
                    session,
                    worker_id=supervisor.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    device=supervisor.device,
                    device_name=device_name,
                    slots=supervisor.settings.slots,
                    jobs=supervisor.jobs,
                )
            lifecycle.sweep(supervisor.database, doorbell, supervisor.settings)
            if sweeps % _TIDY_EVERY_SWEEPS == 0:
                supervisor.tidy()
        except Exception as error:
            known = isinstance(error, SQLAlchemyError | LimbeckError | OSError)
            log.warning("sweep_failed", error=type(error).__name__, exc_info=None if known else error)
        sweeps += 1
        if supervisor.draining.wait(supervisor.settings.sweep_interval):
            return


def _say_goodbye(supervisor: Supervisor) -> None:
    try:
        with supervisor.database.writing() as session:
            workers.left(session, supervisor.worker_id)
    except SQLAlchemyError as error:
        log.warning("goodbye_not_stored", error=type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
