"""Files that are fetched: one appears when it is whole, and what it has is what was promised."""

import hashlib
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from limbeck.errors import DownloadDamaged, LimbeckError, ServiceUnreachable
from limbeck.transport import Transport

_SHA256 = re.compile(r'"([0-9a-f]{64})"')


async def fetch(
    transport: Transport[Any], path: str, target: Path, *, read_timeout: float, sha256: str | None = None
) -> None:
    """What the service has at `path` as the file `target`. `sha256` None: the one in the answer's ETag, if it has one.

    Raises `DownloadDamaged`, `ServiceUnreachable`, or `LimbeckError` where the file cannot be written.
    """
    try:
        async with transport.stream(path, read_timeout=read_timeout) as response:
            etag = _SHA256.fullmatch(response.headers.get("etag", ""))
            with _Part(target) as part:
                async for chunk in transport.wire.chunks(response):
                    part.write(chunk)
                part.keep(sha256 or (etag[1] if etag else None))
    except httpx2.TransportError as error:
        raise ServiceUnreachable(f"the download of {target.name} broke", hint="download it again") from error
    except OSError as error:
        raise LimbeckError(f"{target} cannot be written: {error.strerror or error}") from error


class _Part:
    """What has come of a file so far. It is gone afterwards, unless it was kept."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(target.name + ".part")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._file.write(chunk)

    def keep(self, sha256: str | None) -> None:
        self._file.close()
        if sha256 is not None and self._digest.hexdigest() != sha256:
            raise DownloadDamaged(f"{self._target.name} does not match its SHA-256", hint="download it again")
        self._path.replace(self._target)
