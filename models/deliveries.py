"""Sending what waits in the outbox: any process may, at any time, and of several exactly one sends a delivery now.

To send is to hold a delivery by a lease, which is its `next_at` put off: one `UPDATE … WHERE … RETURNING`. Whoever ends
in between loses nothing but time, and so a receiver may see a delivery twice, with one `webhook-id`. What an attempt
writes down carries its number, and counts only while no other attempt has begun.

    any answer of 200 to 299     delivered
    410                          the webhook is disabled, with all that waits for it
    anything else, or none       again after the next pause of `SCHEDULE`; after the last one it has failed
"""

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from models import secrets
from models.database import Database, db_now
from models.egress import TOTAL_SECONDS, Egress
from models.errors import LimbeckError
from models.secrets import Vault
from models.tables import Delivery, Job, Webhook, utc_now
from models.webhooks import signer

SCHEDULE: tuple[float, ...] = (5, 60, 300, 1800, 2 * 3600, 5 * 3600, 8 * 3600, 8 * 3600)
"""Seconds before the second attempt, the third and so on: nine attempts within a day. Each pause is up to a tenth
longer, by chance, so that what failed together is not tried together."""
_JITTER = 0.1
_LONGEST_PAUSE = 24 * 3600.0
_LEASE_SECONDS = TOTAL_SECONDS + 15
_AT_ONCE = 8
_KEPT = timedelta(days=30)
_GONE = 410
_PLAIN = {"synchronize_session": False}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Held:
    """A delivery that this process, and nobody else, now sends."""

    id: str
    attempt: int
    failures: int
    body: str
    webhook_id: str
    owner: str
    url: str
    secret: str


@dataclass(frozen=True)
class _Outcome:
    """`status` None: no answer came, and `error` says why."""

    status: int | None
    error: str | None
    retry_after: float = 0.0


class Postman:
    """Sends what is due, a few at once but only one for each webhook: a receiver that is slow holds up nobody else."""

    def __init__(self, database: Database, vault: Vault, egress: Egress, schedule: Sequence[float] = SCHEDULE) -> None:
        self._database = database
        self._vault = vault
        self._egress = egress
        self._schedule = tuple(schedule)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")

    def deliver(self, stopping: threading.Event) -> int:
        """Send until nothing is due, or until told to stop; how many were sent. Idle, it asks one question."""
        sent = 0
        while not stopping.is_set():
            with self._database.reading() as session:
                due = _due(session)
            if not due:
                break
            sent += sum(self._threads.map(self._serve, due))
        return sent

    def close(self) -> None:
        """After what is being sent now."""
        self._threads.shutdown(cancel_futures=True)

    def _serve(self, delivery_id: str) -> int:
        with self._database.writing() as session:
            held = _claim(session, delivery_id)
        if held is None:
            return 0
        outcome = self._send(held)
        with self._database.writing() as session:
            self._settle(session, held, outcome)
        return 1

    def _send(self, held: _Held) -> _Outcome:
        """Whatever goes wrong is an outcome, in a sentence that names no address."""
        try:
            with self._database.reading() as session:
                secret = secrets.read(session, self._vault, held.owner, held.secret)
            now = utc_now()
            headers = {
                "Content-Type": "application/json",
                "webhook-id": held.id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": signer(secret).sign(held.id, now, held.body),
            }
            answer = self._egress.send("POST", held.url, headers=headers, content=held.body.encode(), max_bytes=1024)
        except LimbeckError as error:
            return _Outcome(None, error.message)
        if 200 <= answer.status < 300:
            return _Outcome(answer.status, None)
        why = "; redirects are not followed" if 300 <= answer.status < 400 else ""
        asked = answer.headers.get("retry-after", "")
        patience = float(asked) if asked.isascii() and asked.isdecimal() else 0.0
        return _Outcome(answer.status, f"answered {answer.status}{why}", patience)

    def _settle(self, session: Session, held: _Held, outcome: _Outcome) -> None:
        if outcome.status == _GONE:  # first, so that two that hear it at once do not wait for each other
            session.execute(select(Webhook.id).where(Webhook.id == held.webhook_id).with_for_update(key_share=True))
        values: dict[str, Any] = {"last_status_code": outcome.status, "last_error": outcome.error}
        if outcome.error is None:
            values |= {"status": "delivered", "failures": 0, **_ended()}
        elif outcome.status == _GONE or held.failures >= len(self._schedule):
            values |= {"status": "failed", "failures": held.failures + 1, **_ended()}
        else:
            pause = self._schedule[held.failures] * (1 + random.uniform(0, _JITTER))  # noqa: S311 - no secret
            pause = max(pause, min(outcome.retry_after, _LONGEST_PAUSE))
            values |= {"failures": held.failures + 1, "next_at": db_now() + pause}
        mine = update(Delivery).where(
            Delivery.id == held.id, Delivery.attempts == held.attempt, Delivery.status == "pending"
        )
        session.execute(mine.values(**values), execution_options=_PLAIN)
        if outcome.status == _GONE:
            _disable(session, held.webhook_id, "its receiver answered 410: it is gone")
        if outcome.error is not None:
            log.warning("not_delivered", delivery=held.id, webhook=held.webhook_id, status=outcome.status)


def _due(session: Session) -> list[str]:
    """The oldest delivery that is due of each webhook, of some of them."""
    waiting = select(func.min(Delivery.id)).where(Delivery.status == "pending", Delivery.next_at <= db_now())
    return list(session.scalars(waiting.group_by(Delivery.webhook_id).limit(_AT_ONCE)))


def _claim(session: Session, delivery_id: str) -> _Held | None:
    """Hold the delivery for a while; None if somebody else does, or nothing is to be sent any more."""
    mine = (
        update(Delivery)
        .where(Delivery.id == delivery_id, Delivery.status == "pending", Delivery.next_at <= db_now())
        .values(attempts=Delivery.attempts + 1, attempted_at=utc_now(), next_at=db_now() + _LEASE_SECONDS)
        .returning(Delivery.attempts, Delivery.failures, Delivery.body, Delivery.webhook_id)
    )
    row = session.execute(mine, execution_options=_PLAIN).one_or_none()
    if row is None:
        return None
    to = session.execute(select(Webhook.owner, Webhook.url, Webhook.secret).where(Webhook.id == row.webhook_id)).one()
    return _Held(delivery_id, row.attempts, row.failures, row.body, row.webhook_id, to.owner, to.url, to.secret)


def _disable(session: Session, webhook_id: str, reason: str) -> None:
    enabled = update(Webhook).where(Webhook.id == webhook_id, Webhook.disabled_at.is_(None))
    session.execute(enabled.values(disabled_at=utc_now(), disabled_reason=reason), execution_options=_PLAIN)
    waiting = update(Delivery).where(Delivery.webhook_id == webhook_id, Delivery.status == "pending")
    values = {"status": "failed", "last_error": "the webhook is disabled", **_ended()}
    session.execute(waiting.values(**values), execution_options=_PLAIN)


def _ended() -> dict[str, Any]:
    return {"next_at": None, "ended_at": utc_now()}


def sweep(database: Database) -> None:
    """Forget what was settled 30 days ago, and the webhooks of single jobs that have nothing more to tell.

    It looks before it takes the write lock, so that an idle service only reads.
    """
    old = Delivery.ended_at < utc_now() - _KEPT
    with database.reading() as session:
        if session.scalar(select(Delivery.id).where(old).limit(1)) is None:
            return
    with database.writing() as session:
        session.execute(delete(Delivery).where(old), execution_options=_PLAIN)
        done = delete(Webhook).where(
            Webhook.job_id.is_not(None),
            ~exists().where(Job.id == Webhook.job_id),
            ~exists().where(Delivery.webhook_id == Webhook.id),
        )
        session.execute(done, execution_options=_PLAIN)
