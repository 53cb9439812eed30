"""A disk that refuses, in the house's words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import StorageFailure

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def on_disk(what: str) -> Iterator[None]:
    """An OSError inside is a `StorageFailure` (code `storage_full` where there is no space), without its path."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message, hint = f"there is no space left for {what}", "free some space, then try again"
            raise StorageFailure(message, code="storage_full", hint=hint) from error
        raise StorageFailure(f"{what} cannot be kept") from error
