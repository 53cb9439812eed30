"""What can go wrong on this side of the wire, as one tree.

LimbeckError              every error of this package: a sentence and, often, a hint that says what to do next
├── ApiError              the service answered with a problem (RFC 9457): `status`, `code`, `problems`, `request_id`
├── ServiceUnreachable    nothing answered, or not in time
├── UnexpectedAnswer      something answered, and it is not this service or not this version of it
├── WaitTimeout           the time that the caller gave is over; `job` is how it was then
├── DownloadDamaged       a file does not match its SHA-256; nothing of it was kept
└── CannotStart           `limbeck up` cannot run here

`VersionsApart` is a warning and no error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.objects import Job


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request; `pointer` is a JSON pointer (RFC 6901) into what was sent."""

    pointer: str
    message: str
    code: str = "invalid"


class LimbeckError(Exception):
    """The root. `str(error)` is the sentence."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ApiError(LimbeckError):
    """The service refused. Switch on `code`, which never changes its meaning; sentences may."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        title: str = "",
        hint: str | None = None,
        problems: Sequence[Problem] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.title = title or code.replace("_", " ").capitalize()
        self.problems = tuple(problems)
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        if not self.problems:
            return f"{self.message} ({self.code})"
        return f"{self.message} ({self.code}): " + "; ".join(
            f"{problem.pointer or '/'} {problem.message}" for problem in self.problems
        )


class ServiceUnreachable(LimbeckError):
    """`refused`: the machine is there and nothing listens, which most often means that the service is not running."""

    def __init__(self, message: str, *, hint: str | None = None, refused: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.refused = refused


class UnexpectedAnswer(LimbeckError):
    pass


class WaitTimeout(LimbeckError):
    def __init__(self, message: str, *, job: "Job") -> None:
        super().__init__(message, hint="the job goes on; wait again, or cancel it")
        self.job = job


class DownloadDamaged(LimbeckError):
    pass


class CannotStart(LimbeckError):
    pass


class VersionsApart(UserWarning):
    """Client and service are more than one minor version apart."""
