"""Webhooks: who is told of what happens, and what became of each telling."""

from collections.abc import AsyncGenerator, Sequence
from typing import Generic

from limbeck.objects import Delivery, Page, Webhook, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.wires import W_co


class Webhooks(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def create(self, url: str, events: Sequence[str] | None = None, secret: str | None = None) -> Webhook:
        """Tell `url` of `events`, such as job.succeeded (default: of all).

        `secret`: the name of a secret that signs what is sent; by default one is made, and is in the answer's
        `signing_secret` this once.
        """
        given = {"url": url, "events": None if events is None else list(events), "secret": secret}
        document = {name: value for name, value in given.items() if value is not None}
        return read(Webhook, body(await self._transport.request("POST", "/webhooks", json=document)))

    @verb
    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Webhook]:
        """Newest first."""
        return await page(self._transport, "/webhooks", Webhook, after=after, limit=limit)

    @walk
    def all(self) -> AsyncGenerator[Webhook]:
        """Every webhook, newest first, page by page."""
        return every(self._transport, "/webhooks", Webhook)

    @verb
    async def delete(self, webhook: str | Webhook) -> None:
        await self._transport.request("DELETE", f"/webhooks/{_id(webhook)}")

    @verb
    async def deliveries(self, webhook: str | Webhook, *, after: str | None = None, limit: int = 20) -> Page[Delivery]:
        """What was sent or is still to be sent, newest first."""
        return await page(self._transport, f"/webhooks/{_id(webhook)}/deliveries", Delivery, after=after, limit=limit)

    @verb
    async def replay(self, webhook: str | Webhook, delivery: str | Delivery) -> Delivery:
        """Send it once more."""
        path = f"/webhooks/{_id(webhook)}/deliveries/{_id(delivery)}/replay"
        return read(Delivery, body(await self._transport.request("POST", path)))

    @verb
    async def test(self, webhook: str | Webhook) -> Delivery:
        """Send it an event that means nothing, to see whether it arrives."""
        return read(Delivery, body(await self._transport.request("POST", f"/webhooks/{_id(webhook)}/test")))


def _id(item: str | Webhook | Delivery) -> str:
    return item if isinstance(item, str) else item.id
