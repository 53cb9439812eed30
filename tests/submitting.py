"""Submit a job without the API: for tests of what comes after."""

from typing import Any

from models import lifecycle, specs
from models.database import Database


def submit(database: Database, body: dict[str, Any], *, max_queued: int = 10_000) -> str:
    """The id of a new job of the owner `default`."""
    spec = specs.parse_job(body)
    with database.writing() as session:
        job, _ = lifecycle.submit(
            session,
            owner="default",
            spec=spec,
            resolved=specs.resolve(spec),
            document=body,
            estimates=None,
            idempotency_key=None,
            body_sha256="",
            max_queued=max_queued,
        )
        return job.id
