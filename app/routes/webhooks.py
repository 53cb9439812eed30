"""Who is told of what happens, and what became of each delivery: docs/webhooks.md."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from app import security, views
from app.dependencies import (
    DatabaseHere,
    EgressHere,
    PageWanted,
    ReadSession,
    VaultHere,
    WriteSession,
    page_of,
)
from app.security import Caller, needs, only_own
from models import secrets, webhooks
from models.database import Database
from models.egress import Egress
from models.errors import Denied, Invalid, Missing, Problem
from models.secrets import Vault
from models.specs import SecretName, Url
from models.tables import Delivery, Webhook
from models.webhooks import EVENTS, EventType

router = APIRouter(tags=["webhooks"])


@dataclass(frozen=True)
class Check:
    """What stands against sending to an address, found before anything waits to be sent there."""

    database: Database
    vault: Vault
    egress: Egress

    def problems(self, *, owner: str, url: str, secret: str | None, at: str = "") -> Iterator[Problem]:
        """With pointers below `at`. Asks for the host's addresses, and so holds no session meanwhile."""
        try:
            self.egress.check(url)
        except Denied as error:
            yield Problem(f"{at}/url", error.message, error.code)
        if secret is None:
            return
        try:
            with self.database.reading() as session:
                webhooks.signer(secrets.read(session, self.vault, owner, secret))
        except (Missing, Invalid) as error:
            code = "secret_not_found" if error.code == "not_found" else error.code
            yield Problem(f"{at}/secret", f"{error.message}; {error.hint}", code)


def check(database: DatabaseHere, vault: VaultHere, egress: EgressHere) -> Check:
    return Check(database, vault, egress)


CheckHere = Annotated[Check, Depends(check)]


class NewWebhook(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: Url
    events: Annotated[list[EventType], Field(min_length=1, max_length=len(EVENTS))] = list(EVENTS)
    secret: SecretName | None = None
    """The name of the secret that signs; null: one is made, and shown this once."""


@router.post("/webhooks", status_code=status.HTTP_201_CREATED, openapi_extra=needs("jobs"))
def create_webhook(
    wanted: NewWebhook, database: DatabaseHere, vault: VaultHere, checked: CheckHere, who: Caller
) -> views.NewWebhook:
    """Hear of the caller's jobs and deployments. The address must be one that this service may call."""
    wrong = list(checked.problems(owner=who.owner, url=wanted.url, secret=wanted.secret))
    if wrong:
        raise Invalid.of(wrong)
    with database.writing() as session:
        row, made = webhooks.create(
            session, vault, owner=who.owner, url=wanted.url, events=wanted.events, secret=wanted.secret
        )
        shown = None if made is None else made.get_secret_value()
        return views.NewWebhook(**_view(row).model_dump(), signing_secret=shown)


@router.get("/webhooks", openapi_extra=needs("read"))
def list_webhooks(
    session: ReadSession,
    wanted: PageWanted,
    who: Caller,
    job: Annotated[str | None, Query(max_length=64, description="that of this job's spec, instead")] = None,
) -> views.Page[views.Webhook]:
    """One's own, newest first. Those that jobs ask for in their specs stand there only with `job`."""
    statement = only_own(select(Webhook), Webhook.owner, who)
    statement = statement.where(Webhook.job_id.is_(None) if job is None else Webhook.job_id == job)
    rows, has_more = page_of(session, statement, Webhook.id, wanted)
    return views.Page(data=[_view(row) for row in rows], has_more=has_more)


@router.delete("/webhooks/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("jobs"))
def delete_webhook(webhook_id: str, session: WriteSession, who: Caller) -> None:
    """Forget it with its deliveries; those that wait are not sent."""
    webhooks.delete(session, security.find(session, Webhook, webhook_id, who))


@router.get("/webhooks/{webhook_id}/deliveries", openapi_extra=needs("read"))
def list_deliveries(
    webhook_id: str, session: ReadSession, wanted: PageWanted, who: Caller
) -> views.Page[views.Delivery]:
    """What was sent and what waits, of the last 30 days."""
    security.find(session, Webhook, webhook_id, who)
    statement = select(Delivery).where(Delivery.webhook_id == webhook_id)
    rows, has_more = page_of(session, statement, Delivery.id, wanted)
    return views.Page(data=[_delivery(row) for row in rows], has_more=has_more)


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/replay",
    status_code=status.HTTP_202_ACCEPTED,
    openapi_extra=needs("jobs"),
)
def replay_delivery(webhook_id: str, delivery_id: str, session: WriteSession, who: Caller) -> views.Delivery:
    """Send it again within a second or so, with the same id and body, and the same patience as the first time."""
    row = security.find(session, Webhook, webhook_id, who)
    return _delivery(webhooks.replay(session, row, delivery_id))


@router.post("/webhooks/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED, openapi_extra=needs("jobs"))
def test_webhook(webhook_id: str, session: WriteSession, who: Caller) -> views.Delivery:
    """Send an event of the type `webhook.test` within a second or so; what becomes of it is in the deliveries."""
    return _delivery(webhooks.test(session, security.find(session, Webhook, webhook_id, who)))


def _view(row: Webhook) -> views.Webhook:
    fields = {name: getattr(row, name) for name in views.Webhook.model_fields.keys() - {"object", "secret"}}
    return views.Webhook(secret=None if webhooks.made_for_it(row) else row.secret, **fields)


def _delivery(row: Delivery) -> views.Delivery:
    fields = {
        name: getattr(row, name)
        for name in views.Delivery.model_fields.keys() - {"object", "next_attempt_at", "payload"}
    }
    next_at = None if row.next_at is None else datetime.fromtimestamp(row.next_at, UTC)
    return views.Delivery(next_attempt_at=next_at, payload=json.loads(row.body), **fields)
