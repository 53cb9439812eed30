"""Who trains."""

from datetime import UTC, datetime

from fastapi import APIRouter
from sqlalchemy import select

from app import views
from app.dependencies import PageWanted, ReadSession, SettingsHere, page_of
from app.security import Caller, needs, only_own
from models.database import db_now
from models.tables import Job, Worker

router = APIRouter(tags=["workers"])


@router.get("/workers", openapi_extra=needs("read"))
def list_workers(
    session: ReadSession, wanted: PageWanted, settings: SettingsHere, who: Caller
) -> views.Page[views.Worker]:
    """Hosts and devices are everybody's to see; of the jobs on them, one's own."""
    rows, has_more = page_of(session, select(Worker), Worker.id, wanted)
    now = session.scalar(select(db_now())) or 0.0
    running = [job for row in rows for job in row.jobs]
    own = set(session.scalars(only_own(select(Job.id).where(Job.id.in_(running)), Job.owner, who)))
    return views.Page(data=[_view(row, now, own, settings.lease_ttl) for row in rows], has_more=has_more)


def _view(row: Worker, now: float, own: set[str], lease_ttl: float) -> views.Worker:
    silent = max(0.0, now - row.seen_at)
    return views.Worker(
        id=row.id,
        host=row.host,
        device=row.device,
        device_name=row.device_name,
        slots=row.slots,
        jobs=[job for job in row.jobs if job in own],
        started_at=row.started_at,
        seen_at=datetime.fromtimestamp(row.seen_at, UTC),
        seconds_since_seen=round(silent, 3),
        alive=silent <= lease_ttl,
    )
