"""Who trains: which workers have been seen of late, and which queues they serve."""

from collections.abc import Mapping, Sequence
from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.database import db_now
from models.tables import Worker, utc_now
from models.transitions import PLAIN, insert

FRESH_SECONDS = 60.0
"""A worker that was seen so recently is there."""
FORGOTTEN_SECONDS = 24 * 3600.0

Device = Literal["cpu", "gpu"]
_SERVES: Mapping[str, tuple[Device, ...]] = {"cpu": ("cpu",), "gpu": ("gpu", "cpu")}


def serves(worker_device: str) -> tuple[Device, ...]:
    """The queues of a worker, first choice first: one with a GPU takes what waits for a CPU when its own is empty."""
    return _SERVES.get(worker_device, ("cpu",))


def there(session: Session) -> set[str]:
    """The kinds of device that a worker has."""
    fresh = select(Worker.device).where(Worker.seen_at > db_now() - FRESH_SECONDS)
    return set(session.scalars(fresh))


def free(session: Session) -> set[Device]:
    """The queues that a worker with a free slot serves."""
    fresh = select(Worker.device, Worker.slots, Worker.jobs).where(Worker.seen_at > db_now() - FRESH_SECONDS)
    return {device for kind, slots, jobs in session.execute(fresh) if len(jobs) < slots for device in serves(kind)}


def seen(
    session: Session,
    *,
    worker_id: str,
    host: str,
    pid: int,
    device: Device,
    device_name: str,
    slots: int,
    jobs: Sequence[str],
) -> None:
    """A worker says that it is there. Those that have said nothing for a day are forgotten."""
    row = insert(session, Worker).values(
        id=worker_id,
        host=host[:255],
        pid=pid,
        device=device,
        device_name=device_name[:200],
        slots=slots,
        jobs=list(jobs),
        started_at=utc_now(),
        seen_at=db_now(),
    )
    session.execute(
        row.on_conflict_do_update(index_elements=["id"], set_={"jobs": row.excluded.jobs, "seen_at": db_now()})
    )
    session.execute(delete(Worker).where(Worker.seen_at < db_now() - FORGOTTEN_SECONDS), execution_options=PLAIN)


def left(session: Session, worker_id: str) -> None:
    """A worker has ended in order."""
    session.execute(delete(Worker).where(Worker.id == worker_id), execution_options=PLAIN)
