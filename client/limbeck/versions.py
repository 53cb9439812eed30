"""Whether client and service are too far apart to be sure that they understand each other.

A service of the same major version and of the minor one before, the same or after is understood: what it says more is
in `raw`, and what it does not say yet has a default.
"""

import re
import warnings

from limbeck.errors import VersionsApart

_NUMBERS = re.compile(r"(\d+)\.(\d+)")


class Versions:
    """Warns once where the service's version is too far from `own`. It never refuses."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._warned = False

    def heard(self, theirs: str | None) -> None:
        """What an answer's `X-Limbeck-Version` said; None: nothing."""
        if theirs is None or self._warned or not are_apart(self._own, theirs):
            return
        self._warned = True
        warnings.warn(
            f"the service is Limbeck {theirs} and this client is {self._own}: some answers may not be understood; "
            "install the client of the same version",
            VersionsApart,
            stacklevel=2,
        )


def are_apart(own: str, theirs: str) -> bool:
    """Another major version, or more than one minor version between them. A version that is no number is not."""
    ours, others = _NUMBERS.match(own), _NUMBERS.match(theirs)
    if ours is None or others is None:
        return False
    return ours[1] != others[1] or abs(int(ours[2]) - int(others[2])) > 1
