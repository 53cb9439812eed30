"""What may stand at a place of the command line: for an id the newest that the service has, else some words."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import httpx2
import typer

from limbeck import address

Offered = list[tuple[str, str]]

_SECONDS = 1.0


def ids(*nouns: str) -> Callable[[str], Offered]:
    """A completion of the ids of these lists, such as `jobs`, each with its name and status.

    A service that does not answer, or refuses, offers nothing: the shell waits for nobody.
    """

    def offer(incomplete: str) -> Offered:
        return [found for noun in nouns for found in _listed(noun) if found[0].startswith(incomplete)]

    return offer


def among(words: Sequence[str]) -> Callable[[str], list[str]]:
    """A completion of these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def only(words: Sequence[str]) -> Callable[[list[str] | None], list[str] | None]:
    """A check that each of several values is one of these words; a typo is told with what was meant."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in words:
                near = get_close_matches(value, words, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise typer.BadParameter(f"{value!r} is none of {', '.join(words)}{meant}")
        return values

    return check


def _listed(noun: str) -> Offered:
    found = address.find()
    headers = {"Authorization": f"Bearer {found.key}"} if found.key else {}
    try:
        proxied = not address.is_loopback(httpx2.URL(found.url).host)
        answer = httpx2.get(
            f"{found.url}/{noun}", params={"limit": 100}, headers=headers, timeout=_SECONDS, trust_env=proxied
        )
        rows = answer.json()["data"]
        return [(_id(row), _about(row)) for row in rows]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError):
        return []


def _id(row: dict[str, object]) -> str:
    """Deployments and secrets are known by their names."""
    named = row.get("object") in {"deployment", "secret"}
    return str(row["name"] if named else row["id"])


def _about(row: dict[str, object]) -> str:
    parts = (row.get(name) for name in ("name", "status", "url"))
    return " ".join(str(part) for part in parts if part)
