"""Who is told of what happens: webhooks, and the outbox that their deliveries wait in.

    create, delete          an address that wants to hear of an owner's jobs and deployments
    tell_of_job             a job came to a status that somebody wants to hear of
    tell_of_move            so did a deployment
    test, replay            a person wants one sent now

A delivery's row is written in the transaction that changes the status, so that both come to be or neither does. Who
sends it, and when, is said in `models.deliveries`. The format is that of https://www.standardwebhooks.com: an id, a
time and a signature in the headers, and `{"type", "timestamp", "data"}` in the body.
"""

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from secrets import token_bytes
from typing import Any, Literal, get_args

from pydantic import SecretStr
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Signer

from models import secrets
from models.database import db_now
from models.errors import Conflict, Invalid, Missing
from models.secrets import Vault
from models.tables import (
    Delivery,
    Deployment,
    DeploymentChange,
    Job,
    JobStatus,
    Secret,
    Student,
    Webhook,
    new_id,
    utc_now,
)

EventType = Literal[
    "job.started", "job.succeeded", "job.failed", "job.cancelled", "job.paused", "deployment.moved", "student.published"
]
EVENTS: tuple[EventType, ...] = get_args(EventType)
TEST = "webhook.test"

MOST_WEBHOOKS = 50
"""Of one owner, not counting those of single jobs."""
_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)
"""As Standard Webhooks has it."""

# What the lifecycle tells of a job, and the status that the job then has: a trainer's own words change none.
_OF_JOB: Mapping[str, tuple[EventType, JobStatus]] = {
    "started": ("job.started", "running"),
    "succeeded": ("job.succeeded", "succeeded"),
    "failed": ("job.failed", "failed"),
    "cancelled": ("job.cancelled", "cancelled"),
    "paused": ("job.paused", "paused"),
}


# --- webhooks ---------------------------------------------------------------------------------------------------------


def create(
    session: Session, vault: Vault, *, owner: str, url: str, events: Sequence[EventType], secret: str | None
) -> tuple[Webhook, SecretStr | None]:
    """A new webhook; and the secret that signs, where it is a new one, which nobody is shown again.

    `secret` is the name of the owner's own; None: one is made. Raises `Conflict` (code `too_many_webhooks`).
    """
    standing = select(func.count()).select_from(Webhook).where(Webhook.owner == owner, Webhook.job_id.is_(None))
    there = session.scalar(standing) or 0
    if there >= MOST_WEBHOOKS:
        raise Conflict(f"there are {there} webhooks already", code="too_many_webhooks", hint="delete some first")
    id_ = new_id("wh")
    made = None
    if secret is None:
        secret = _own_secret(id_)
        made = SecretStr(_PREFIX + b64encode(token_bytes(32)).decode())
        secrets.put(session, vault, owner, secret, made)
    row = Webhook(id=id_, owner=owner, url=url, events=list(dict.fromkeys(events)), secret=secret)
    session.add(row)
    session.flush()
    return row, made


def delete(session: Session, webhook: Webhook) -> None:
    """Forget a webhook with its deliveries, those that wait too, and the secret that was made for it."""
    made = session.get(Secret, (webhook.owner, _own_secret(webhook.id)))
    if made is not None:
        session.delete(made)
    session.delete(webhook)


def made_for_it(webhook: Webhook) -> bool:
    """Whether the secret that signs is one that `create` made."""
    return webhook.secret == _own_secret(webhook.id)


def _own_secret(webhook_id: str) -> str:
    return f"webhook/{webhook_id}"


def signer(secret: SecretStr) -> Signer:
    """Signs with a secret `whsec_…`. Raises `Invalid` (code `bad_signing_secret`)."""
    value = secret.get_secret_value()
    try:
        raw = b64decode(value.removeprefix(_PREFIX), validate=True) if value.startswith(_PREFIX) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) not in _SECRET_BYTES:
        raise Invalid(
            "this secret cannot sign: it is not `whsec_` with 24 to 64 bytes in base64",
            code="bad_signing_secret",
            hint="make one with: python -c \"import base64, secrets; print('whsec_' + "
            'base64.b64encode(secrets.token_bytes(32)).decode())"',
        )
    return Signer(raw)


# --- what happens -----------------------------------------------------------------------------------------------------


def tell_of_job(session: Session, job_id: str, code: str) -> None:
    """A job's event of the code `code` was written: deliver it to whoever wants to hear of it.

    With its first event, `queued`, the webhook of its own spec comes to be.
    """
    if code == "queued":
        _listen_to(session, job_id)
        return
    told = _OF_JOB.get(code)
    if told is None:
        return
    type_, status = told
    # Columns, not the row: the verbs change jobs behind the session's back.
    columns = (Job.id, Job.owner, Job.name, Job.status, Job.attempt, Job.student_id, Job.error, Job.version)
    job = session.execute(select(*columns).where(Job.id == job_id, Job.status == status)).one_or_none()
    if job is None:
        return
    data = dict(job._mapping)  # noqa: SLF001 - SQLAlchemy's public name of it
    owner = data.pop("owner")
    happened: list[tuple[EventType, dict[str, Any]]] = [(type_, data)]
    if type_ == "job.succeeded":
        happened.append(("student.published", _published(session, job.student_id)))
    _enqueue(session, owner, happened, job_id)


def tell_of_move(session: Session, deployment: Deployment, change: DeploymentChange) -> None:
    """A deployment points at another student than before."""
    data = {
        "id": deployment.id,
        "name": deployment.name,
        "student_id": change.student_id,
        "previous_student_id": change.previous_student_id,
        "verb": change.verb,
        "by": change.by,
        "reason": change.reason,
        "version": change.version,
    }
    _enqueue(session, deployment.owner, [("deployment.moved", data)], None)


def test(session: Session, webhook: Webhook) -> Delivery:
    """An event of the type `webhook.test`, due now. Raises `Conflict` (code `webhook_disabled`)."""
    _expect_enabled(webhook)
    row = _delivery(webhook.id, TEST, {"id": webhook.id})
    session.add(row)
    session.flush()
    return row


def replay(session: Session, webhook: Webhook, delivery_id: str) -> Delivery:
    """Send a delivery again from now on, as often as a new one: the same id and body, whatever became of it before.

    Raises `Missing`, and `Conflict` (code `webhook_disabled`).
    """
    row = session.get(Delivery, delivery_id, with_for_update=True)
    if row is None or row.webhook_id != webhook.id:
        raise Missing(f"there is no delivery {delivery_id[:64]!r}")
    _expect_enabled(webhook)
    row.status, row.failures, row.ended_at = "pending", 0, None
    row.next_at = session.scalar(select(db_now()))
    session.flush()
    return row


def _expect_enabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise Conflict(
            f"this webhook is disabled: {webhook.disabled_reason}",
            code="webhook_disabled",
            hint="delete it and create it again",
        )


def _listen_to(session: Session, job_id: str) -> None:
    """The webhook that a job's own spec asks for."""
    job = session.get_one(Job, job_id)
    wanted = job.resolved_spec.get("webhook")
    if wanted is None or session.scalar(select(Webhook.id).where(Webhook.job_id == job_id)) is not None:
        return
    events = [event for event in EVENTS if not event.startswith("deployment.")]
    session.add(
        Webhook(
            id=new_id("wh"),
            owner=job.owner,
            url=wanted["url"],
            events=events,
            secret=wanted["secret"],
            job_id=job_id,
        )
    )


def _published(session: Session, student_id: str) -> dict[str, Any]:
    student = session.get_one(Student, student_id)
    verdict = student.report.get("verdict")
    gate = (student.report.get("gate") or {}).get("passed")
    return {
        "id": student.id,
        "name": student.name,
        "job_id": student.job_id,
        "hash": student.hash,
        "verdict": verdict,
        "gate_passed": gate,
    }


def _enqueue(
    session: Session, owner: str, happened: Sequence[tuple[EventType, dict[str, Any]]], job_id: str | None
) -> None:
    # Held until the rows are written: a webhook that is deleted takes its deliveries with it, and must not go between.
    own = or_(Webhook.job_id.is_(None), Webhook.job_id == job_id)
    listening = select(Webhook.id, Webhook.events).where(Webhook.owner == owner, own, Webhook.disabled_at.is_(None))
    held = listening.order_by(Webhook.id).with_for_update(read=True, key_share=True)
    for webhook_id, events in session.execute(held).all():
        session.add_all(_delivery(webhook_id, type_, data) for type_, data in happened if type_ in events)


def _delivery(webhook_id: str, type_: str, data: Mapping[str, Any]) -> Delivery:
    body = json.dumps({"type": type_, "timestamp": utc_now().isoformat(), "data": data}, separators=(",", ":"))
    return Delivery(id=new_id("dl"), webhook_id=webhook_id, type=type_, body=body, next_at=db_now())
