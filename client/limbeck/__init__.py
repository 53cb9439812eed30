"""The client of Limbeck, the self-hosted service for knowledge distillation.

It speaks HTTP and knows nothing of the server's code, so that it can live in anybody's application. `Client` is the way
in, and `AsyncClient` where there is an event loop; errors are a tree below `LimbeckError`; what the service answers are
the frozen dataclasses of `limbeck.objects`.
"""

from limbeck.client import AsyncClient, Client, __version__
from limbeck.errors import (
    ApiError,
    DownloadDamaged,
    LimbeckError,
    Problem,
    ServiceUnreachable,
    UnexpectedAnswer,
    VersionsApart,
    WaitTimeout,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "DownloadDamaged",
    "LimbeckError",
    "Problem",
    "ServiceUnreachable",
    "UnexpectedAnswer",
    "VersionsApart",
    "WaitTimeout",
    "__version__",
]
