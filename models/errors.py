"""What can go wrong, as one tree. Nothing here knows HTTP: `app/errors.py` has the one table from error to status.

    LimbeckError                    every error with a stable `code`, a sentence, and a hint that says what to do next
    ├── Unauthenticated             no key, or one that is not (or no longer) valid
    ├── Forbidden                   a valid key that lacks the scope
    ├── Missing                     absent, or someone else's
    ├── Invalid                     malformed or impossible; carries every problem at once, each with a JSON pointer
    │   ├── NotAvailableYet         part of the contract whose machinery this version does not have
    │   └── Denied                  a URL that this service will not call
    ├── Conflict                    the state of things forbids it (an illegal transition, a name in use, a stale ETag)
    ├── TooLarge                    a body, an upload or a batch over its limit
    ├── Overloaded                  try again after `retry_after` seconds; the caller did nothing wrong
    ├── Unavailable                 something that we stand on does not answer; try again after `retry_after` seconds
    ├── StorageFailure              the artifact store or a disk refused
    │   └── ArtifactDamaged         a file does not match the hash in its manifest
    ├── Fenced                      this attempt has lost its lease: write nothing more
    └── JobFailure                  a job that cannot go on, however often it is tried: bad data, divergence, no memory

A `code` is part of the API: clients switch on it, so it never changes its meaning.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request.

    `pointer` is a JSON pointer (RFC 6901) into what the caller sent; the empty string is the whole document.
    """

    pointer: str
    message: str
    code: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


class LimbeckError(Exception):
    """The root. `message` says what happened in a sentence for people; `hint` says what to do about it."""

    code = "internal_error"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str | None = None, problems: Sequence[Problem] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.hint = hint
        self.problems = tuple(problems)


class Unauthenticated(LimbeckError):
    code = "unauthenticated"


class Forbidden(LimbeckError):
    code = "forbidden"


class Missing(LimbeckError):
    code = "not_found"


class Invalid(LimbeckError):
    code = "invalid"

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> "Invalid":
        """One error for many problems; its code is theirs when they agree."""
        codes = {problem.code for problem in problems}
        first = problems[0]
        one = f"{first.pointer}: {first.message}" if first.pointer else first.message
        summary = one if len(problems) == 1 else f"{len(problems)} problems with this request"
        return cls(summary, code=codes.pop() if len(codes) == 1 else cls.code, problems=problems)


class NotAvailableYet(Invalid):
    code = "not_available_yet"


class Denied(Invalid):
    code = "egress_denied"


class Conflict(LimbeckError):
    code = "conflict"


class TooLarge(LimbeckError):
    code = "too_large"


class Overloaded(LimbeckError):
    code = "overloaded"

    def __init__(
        self, message: str, *, retry_after: float = 1.0, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after = retry_after


class Unavailable(LimbeckError):
    code = "unavailable"

    def __init__(
        self, message: str, *, retry_after: float = 2.0, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after = retry_after


class StorageFailure(LimbeckError):
    code = "storage_failure"


class ArtifactDamaged(StorageFailure):
    code = "artifact_damaged"


class Fenced(LimbeckError):
    code = "fenced"


class JobFailure(LimbeckError):
    """Raised by the recipe; `code` is given where it is raised, and is part of the API.

    `pointer` names the part of the spec that is to blame, where there is one.
    """

    code = "job_failed"

    def __init__(self, message: str, *, code: str, hint: str | None = None, pointer: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.pointer = pointer
