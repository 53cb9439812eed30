"""What is personal in an input goes before anything of it is kept. It knows no database and no HTTP.

Patterns are the deployment's own, and so may take exponential time on a text (`(a|aa)+$`). Python's `re` holds the
interpreter's lock while it looks, and one such pattern would stop the whole service; `regex` lets go of it, and gives
up after a time. What cannot be redacted in that time is not kept at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

MARK = "[redacted]"
SECONDS = 0.25
"""For one pattern and one text."""

PATTERNS: Mapping[str, str] = {
    "email": r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+",
    "phone": r"(?<!\w)\+?\(?\d(?:[ ()./-]{0,3}\d){6,14}(?!\d)",
    "number": r"\d++(?:[.,]\d++)*+",
}
"""What `email`, `phone` and `number` stand for; a phone has 7 to 15 digits."""

_OF_THE_STUDENT = frozenset({"label", "entity_group", "entity"})
"""Names of labels in an answer: they come from the student, and never from a text."""

Span = tuple[int, int]


class Unredacted(Exception):
    """A pattern took too long for a text, or is none that `regex` can read."""


@dataclass(frozen=True)
class Redaction:
    patterns: tuple["regex.Pattern[str]", ...]

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, patterns: Sequence[str]) -> "Redaction":
        """Compiled once. Raises `Unredacted`."""
        try:
            return cls(tuple(regex.compile(PATTERNS.get(pattern, pattern)) for pattern in patterns))
        except regex.error as error:
            raise Unredacted("one of the patterns cannot be read") from error

    def kept(self, given: Any, answer: Any) -> tuple[Any, Any]:
        """An input as `models.inputs.as_json` has it, and its answer, with `[redacted]` for whatever a pattern matches.

        `start` and `end` in the answer count the characters of what is kept, as they did of what came; a word that has
        something redacted is cut anew. Raises `Unredacted`.
        """
        if not self.patterns:
            return given, answer
        # Only a text and a question's context have places that an answer counts in.
        text = given if isinstance(given, str) else given.get("context", "")
        spans = self._spans(text)
        return self._all(given), self._answer(answer, _Moved(text, spans))

    def _answer(self, answer: Any, text: "_Moved") -> Any:
        match answer:
            case list():
                return [self._answer(one, text) for one in answer]
            case {"start": int(start), "end": int(end)}:
                moved = {"start": text.start(start), "end": text.end(end)}
                word = {name: text.word(start, end, answer[name]) for name in ("word", "answer") if name in answer}
                return {**answer, **word, **moved}
            case _:
                return self._all(answer)

    def _all(self, value: Any) -> Any:
        match value:
            case str():
                return _Moved(value, self._spans(value)).text
            case list():
                return [self._all(one) for one in value]
            case dict():
                return {name: one if name in _OF_THE_STUDENT else self._all(one) for name, one in value.items()}
            case _:
                return value

    def _spans(self, text: str) -> list[Span]:
        """What any pattern matches, in order; matches that touch are one."""
        found: list[Span] = []
        try:
            for pattern in self.patterns:
                found += [match.span() for match in pattern.finditer(text, concurrent=True, timeout=SECONDS)]
        except TimeoutError:
            raise Unredacted("a pattern took too long") from None
        merged: list[Span] = []
        for start, end in sorted(span for span in found if span[0] < span[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged


class _Moved:
    """A text with a mark in the place of each span, and where the places of the old text are in the new one."""

    def __init__(self, text: str, spans: Sequence[Span]) -> None:
        parts: list[str] = []
        self._marks: list[tuple[Span, Span]] = []
        done = length = 0
        for start, end in spans:
            parts += [text[done:start], MARK]
            length += start - done
            self._marks.append(((start, end), (length, length + len(MARK))))
            done, length = end, length + len(MARK)
        self.text = "".join([*parts, text[done:]])

    def start(self, place: int) -> int:
        """Of a place inside a span the beginning of its mark."""
        return self._place(place, side=0)

    def end(self, place: int) -> int:
        """Of a place inside a span the end of its mark."""
        return self._place(place, side=1)

    def word(self, start: int, end: int, word: str) -> str:
        """`word` as it is, or what the new text has in its place if a span overlaps it."""
        overlaps = any(old[0] < end and start < old[1] for old, _ in self._marks)
        return self.text[self.start(start) : self.end(end)] if overlaps else word

    def _place(self, place: int, *, side: int) -> int:
        shift = 0
        for old, new in self._marks:
            if place <= old[0]:
                break
            if place < old[1]:
                return new[side]
            shift = new[1] - old[1]
        return place + shift
