"""API keys. All of it needs the scope `admin`."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from limbeck.objects import Key, Page, read
from limbeck.paging import every, page
from limbeck.transport import Transport, body


class Keys:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
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
        return read(Key, body(self._transport.request("POST", "/keys", json=document)))

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[Key]:
        """Newest first, revoked ones too."""
        return page(self._transport, "/keys", Key, after=after, limit=limit)

    def all(self) -> Iterator[Key]:
        """Every key, newest first, page by page."""
        return every(lambda after: self.list(after=after, limit=100))

    def delete(self, key: str | Key) -> None:
        """Revoke it: from within a second on it opens nothing."""
        self._transport.request("DELETE", f"/keys/{key if isinstance(key, str) else key.id}")
