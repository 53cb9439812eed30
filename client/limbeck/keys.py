"""API keys. All of it needs the scope `admin`."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Generic

from limbeck.objects import Key, Page, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.wires import W_co


class Keys(Generic[W_co]):
    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def create(
        self,
        scopes: Sequence[str],
        *,
        name: str = "",
        owner: str | None = None,
        expires_at: datetime | None = None,
    ) -> Key:
        """A new key. Its secret is in the answer's `key` this once. `owner` None: your own."""
        document: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if owner is not None:
            document["owner"] = owner
        if expires_at is not None:
            document["expires_at"] = expires_at.isoformat()
        return read(Key, body(await self._transport.request("POST", "/keys", json=document)))

    @verb
    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Key]:
        """Newest first, revoked ones too."""
        return await page(self._transport, "/keys", Key, after=after, limit=limit)

    @walk
    def all(self) -> AsyncGenerator[Key]:
        """Every key, newest first, page by page."""
        return every(self._transport, "/keys", Key)

    @verb
    async def delete(self, key: str | Key) -> None:
        """Revoke it: from within a second on it opens nothing."""
        await self._transport.request("DELETE", f"/keys/{key if isinstance(key, str) else key.id}")
