"""What an owner gives to be used for him and never shown again: the keys that sign webhooks, the tokens of hubs.

A value is encrypted with Fernet (AES-128-CBC with HMAC-SHA256) under a key that is not in the database: those of
`LIMBECK_SECRET_KEY`, the newest first, and that of the data folder's `secret.key`, which is made where there is none.
The first key encrypts, each of them decrypts, and `rotate` brings what older ones encrypted under the first.

A value is a `SecretStr` wherever it has a name: none is in an answer, a log, a `repr`, or a traceback with locals.
"""

import os
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex, token_urlsafe

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.database import Database
from models.errors import Conflict, Missing, StorageFailure
from models.settings import Settings
from models.tables import Secret, Webhook, utc_now

MOST_SECRETS = 500
"""Of one owner."""
_SHORTEST_KEY = 32
_INFO = b"limbeck: secrets at rest"


class Vault:
    """Encrypts with the first of `keys`, and decrypts what any of them has encrypted. Raises ValueError."""

    def __init__(self, keys: Sequence[str]) -> None:
        short = [key for key in keys if len(key) < _SHORTEST_KEY]
        if short or not keys:
            raise ValueError(
                f"LIMBECK_SECRET_KEY: each of its keys needs {_SHORTEST_KEY} characters or more; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        raw = list(dict.fromkeys(_stretched(key) for key in keys))
        self._fernet = MultiFernet([Fernet(urlsafe_b64encode(key)) for key in raw])
        self._ids = [sha256(b"limbeck: which key" + key).hexdigest()[:16] for key in raw]

    @classmethod
    def of(cls, settings: Settings) -> "Vault":
        """The keys of this process's settings; without one, that of the data folder, made if need be."""
        given = "" if settings.secret_key is None else settings.secret_key.get_secret_value()
        keys = [part.strip() for part in given.split(",") if part.strip()]
        path = settings.secret_key_file
        if path.exists() or not keys:
            keys.append(_key_in(path))
        return cls(keys)

    @property
    def key_id(self) -> str:
        """Names the first key, and tells nothing about it."""
        return self._ids[0]

    @property
    def older(self) -> tuple[str, ...]:
        return tuple(self._ids[1:])

    def seal(self, value: SecretStr) -> str:
        return self._fernet.encrypt(value.get_secret_value().encode()).decode("ascii")

    def open(self, sealed: str) -> SecretStr:
        """Raises `StorageFailure` (code `secret_unreadable`) if no key of this process fits."""
        try:
            return SecretStr(self._fernet.decrypt(sealed.encode()).decode())
        except InvalidToken:
            raise StorageFailure(
                "this secret was encrypted with a key that this process does not have",
                code="secret_unreadable",
                hint="give every API process the same LIMBECK_SECRET_KEY, or put the secret again",
            ) from None


def _stretched(key: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=_INFO).derive(key.encode())


def _key_in(path: Path) -> str:
    """The key in the file, which is made for its owner's eyes only; of several processes one makes it."""
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # somebody else was first, and theirs holds
                os.link(temporary, path)
        finally:
            temporary.unlink()
    return path.read_text("ascii").strip()


# --- verbs ------------------------------------------------------------------------------------------------------------


def find(session: Session, owner: str, name: str) -> Secret:
    """Raises `Missing`."""
    found = session.get(Secret, (owner, name))
    if found is None or _is_ours(name):
        raise Missing(f"there is no secret {name[:64]!r}", hint=f"PUT /secrets/{name[:64]} makes it")
    return found


def listed(session: Session, owner: str) -> list[Secret]:
    """All of an owner's own, by name."""
    own = select(Secret).where(Secret.owner == owner, ~Secret.name.contains("/", autoescape=True))
    return list(session.scalars(own.order_by(Secret.name)))


def put(session: Session, vault: Vault, owner: str, name: str, value: SecretStr) -> tuple[Secret, bool]:
    """Keep `value` under `name`; the row, and whether it is new. Raises `Conflict` (code `too_many_secrets`)."""
    row = session.get(Secret, (owner, name))
    is_new = row is None
    if row is None:
        kept = session.scalar(select(func.count()).select_from(Secret).where(Secret.owner == owner)) or 0
        if kept >= MOST_SECRETS:
            raise Conflict(f"{kept} secrets are kept already", code="too_many_secrets", hint="delete some first")
        row = Secret(owner=owner, name=name)
        session.add(row)
    row.sealed, row.key_id, row.updated_at = vault.seal(value), vault.key_id, utc_now()
    session.flush()
    return row, is_new


def read(session: Session, vault: Vault, owner: str, name: str) -> SecretStr:
    """For use, never for an answer. Raises `Missing`, and `StorageFailure` where no key fits."""
    row = session.get(Secret, (owner, name))
    if row is None:
        raise Missing(f"there is no secret {name[:64]!r}", hint=f"PUT /secrets/{name[:64]} makes it")
    return vault.open(row.sealed)


def delete(session: Session, owner: str, name: str) -> None:
    """Raises `Missing`, and `Conflict` (code `secret_in_use`) while a webhook signs with it."""
    row = find(session, owner, name)
    signing = select(Webhook.id).where(Webhook.owner == owner, Webhook.secret == name, Webhook.job_id.is_(None))
    user = session.scalar(signing.limit(1))
    if user is not None:
        raise Conflict(
            f"the webhook {user} signs with it",
            code="secret_in_use",
            hint="delete the webhook first, or put another value",
        )
    session.delete(row)


def rotate(database: Database, vault: Vault) -> int:
    """Encrypt anew, with the first key, what the older ones have encrypted; how many there were.

    It looks before it takes the write lock. What no key fits stays as it is.
    """
    old = select(Secret).where(Secret.key_id.in_(vault.older))
    with database.reading() as session:
        if not vault.older or session.scalar(old.limit(1)) is None:
            return 0
    with database.writing() as session:
        rotated = 0
        for row in session.scalars(old.with_for_update()):
            with suppress(StorageFailure):
                row.sealed, row.key_id = vault.seal(vault.open(row.sealed)), vault.key_id
                rotated += 1
        return rotated


def _is_ours(name: str) -> bool:
    return "/" in name
