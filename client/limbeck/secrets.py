"""Secrets: hub tokens, keys of teachers' APIs, what webhooks are signed with. A value goes in and never comes out."""

from typing import Generic

from limbeck.objects import Page, Secret, read
from limbeck.paging import page
from limbeck.transport import Transport, body
from limbeck.verbs import verb
from limbeck.wires import W_co


class Secrets(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def list(self) -> Page[Secret]:
        """Their names."""
        return await page(self._transport, "/secrets", Secret)

    @verb
    async def get(self, name: str) -> Secret:
        return read(Secret, body(await self._transport.request("GET", f"/secrets/{name}")))

    @verb
    async def put(self, name: str, value: str) -> Secret:
        """Keep `value` under `name`, in place of the one before."""
        return read(Secret, body(await self._transport.request("PUT", f"/secrets/{name}", json={"value": value})))

    @verb
    async def delete(self, name: str) -> None:
        await self._transport.request("DELETE", f"/secrets/{name}")
