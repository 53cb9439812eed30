"""What a deployment's capture keeps: inputs with their answers, for a while, and the truth where somebody tells it.

A log has a budget of rows and of bytes; above either the oldest rows go. It is measured after writes and not at every
one: at a hundredth of the budget since the last time, so that a large log is not read again for each call. Turning
capture off keeps what is there until it expires; deleting the deployment takes it along.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from models.database import Database
from models.specs import Capture
from models.tables import Deployment, Prediction, utc_now

_PAGE_ROWS = 500
_MEASURED_EVERY = 0.01
_ID = re.compile(r"pr_([0-9a-hjkmnp-tv-z]{10})[0-9a-hjkmnp-tv-z]{16}(?:\.\d{1,6})?")
_DIGITS = str.maketrans("0123456789abcdefghjkmnpqrstvwxyz", "0123456789abcdefghijklmnopqrstuv")


@dataclass(frozen=True)
class Kept:
    """One input with its answer, redacted already."""

    id: str
    owner: str
    deployment_id: str
    student_id: str
    arm: str
    input: Any
    """As `models.inputs.as_json` writes it."""
    answer: Any
    at: datetime
    capture: Capture
    """Of the deployment, as it was at the time of the call."""


@dataclass
class Log:
    """Writes what was kept, and holds each deployment to its budget."""

    database: Database
    _since: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rows and bytes of each deployment that were written since its log was measured."""

    def write(self, kept: Sequence[Kept]) -> None:
        """Of deployments that are gone by now nothing is written."""
        with self.database.writing() as session:
            wanted = {one.deployment_id for one in kept}
            known = select(Deployment.id).where(Deployment.id.in_(wanted)).with_for_update(read=True, key_share=True)
            there = set(session.scalars(known))
            rows = [_row(one) for one in kept if one.deployment_id in there]
            if rows:
                session.execute(insert(Prediction), rows)
        captures = {one.deployment_id: one.capture for one in kept}
        for deployment_id in there:
            sizes = [row["bytes"] for row in rows if row["deployment_id"] == deployment_id]
            self._trim(deployment_id, captures[deployment_id], len(sizes), sum(sizes))

    def _trim(self, deployment_id: str, capture: Capture, rows: int, size: int) -> None:
        before = self._since.get(deployment_id, (capture.max_rows, capture.max_bytes))  # a new process measures at once
        rows, size = before[0] + rows, before[1] + size
        if rows < capture.max_rows * _MEASURED_EVERY and size < capture.max_bytes * _MEASURED_EVERY:
            self._since[deployment_id] = rows, size
            return
        with self.database.reading() as session:
            last = _last_over_budget(session, deployment_id, capture)
        if last is not None:
            old = (Prediction.deployment_id == deployment_id) & (Prediction.id <= last)
            with self.database.writing() as session:
                session.execute(delete(Prediction).where(old))
        self._since[deployment_id] = 0, 0


def expire(database: Database) -> int:
    """Delete what is too old to be kept; how many rows. Takes no write lock where there is nothing to delete."""
    old = Prediction.expires_at <= utc_now()
    with database.reading() as session:
        if session.scalar(select(Prediction.id).where(old).limit(1)) is None:
            return 0
    with database.writing() as session:
        return len(session.scalars(delete(Prediction).where(old).returning(Prediction.id)).all())


def captured(deployment_id: str, *, labelled: bool | None = None) -> Select[Prediction]:
    """The rows of a deployment that have not expired; with `labelled` only those with a label, or those without."""
    statement = select(Prediction).where(Prediction.deployment_id == deployment_id, Prediction.expires_at > utc_now())
    match labelled:
        case None:
            return statement
        case True:
            return statement.where(Prediction.labelled_at.is_not(None))
        case False:
            return statement.where(Prediction.labelled_at.is_(None))


def pages(session: Session, deployment_id: str) -> Iterable[Sequence[Prediction]]:
    """All rows of a deployment that have not expired, oldest first, few at a time: a log may be larger than memory."""
    last = ""
    while True:
        statement = captured(deployment_id).where(Prediction.id > last).order_by(Prediction.id).limit(_PAGE_ROWS)
        rows = session.scalars(statement).all()
        if not rows:
            return
        last = rows[-1].id
        yield rows
        session.expunge_all()


def clear(session: Session, deployment_id: str) -> None:
    session.execute(delete(Prediction).where(Prediction.deployment_id == deployment_id))


def label(row: Prediction, truth: Any) -> None:
    """Write down the true answer. The same once more changes nothing; another one takes its place."""
    if row.labelled_at is None or row.label != truth:
        row.label = truth
        row.labelled_at = utc_now()


def is_recent(prediction_id: str, seconds: float) -> bool:
    """Whether the id was made less than `seconds` ago, by this machine's clock; False for what is no such id."""
    found = _ID.fullmatch(prediction_id)
    if found is None:
        return False
    made_at = int(found[1].translate(_DIGITS), 32) / 1000
    return abs(utc_now().timestamp() - made_at) < seconds


def _row(one: Kept) -> dict[str, Any]:
    texts = [json.dumps(part, ensure_ascii=False) for part in (one.input, one.answer)]
    return {
        "id": one.id,
        "owner": one.owner,
        "deployment_id": one.deployment_id,
        "student_id": one.student_id,
        "arm": one.arm,
        "input": one.input,
        "answer": one.answer,
        "bytes": sum(len(text.encode()) for text in texts),
        "label": None,
        "created_at": one.at,
        "expires_at": one.at + timedelta(days=one.capture.days),
    }


def _last_over_budget(session: Session, deployment_id: str, capture: Capture) -> str | None:
    """The newest row that has no room when the budget is filled from the newest on; None where all have."""
    newest_first = Prediction.id.desc()
    counted = (
        select(
            Prediction.id,
            func.row_number().over(order_by=newest_first).label("place"),
            func.sum(Prediction.bytes).over(order_by=newest_first).label("total"),
        )
        .where(Prediction.deployment_id == deployment_id)
        .subquery()
    )
    over = or_(counted.c.place > capture.max_rows, counted.c.total > capture.max_bytes)
    found: str | None = session.scalar(select(func.max(counted.c.id)).where(over))
    return found
