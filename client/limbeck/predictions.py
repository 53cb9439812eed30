"""What /predict answers, for every kind of task, as frozen dataclasses."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import UnexpectedAnswer


@dataclass(frozen=True)
class Label:
    """One label of a text; of a regression the name of its number, with the number as its score."""

    label: str
    score: float


@dataclass(frozen=True)
class Entity:
    """What stands in a text from the character `start` to before `end`.

    With the strategy "none" it is one token, `index` says which one, and `entity_group` has its whole tag.
    """

    entity_group: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


@dataclass(frozen=True)
class Span:
    """A stretch of a context, from the character `start` to before `end`; empty where the context has no answer."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Predictions:
    """For each input a list, also for a single one: of a text its labels, best first, or its entities in order; of a
    question its answers, best first. Use it as a sequence: `answers[0][0].label`.
    """

    data: list[list[Any]]
    """Of `Label`, `Entity` or `Span`, as the deployment's task has it."""
    student: str | None = None
    """The student that computed them."""
    server_timing: str | None = None
    raw: Any = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> list[Any]:
        return self.data[position]


def answers_of(answers: Any, *, single: bool) -> list[list[Label | Entity | Span]]:
    """The answers of /predict, a list for each input. `single`: whether one input was sent, and no list.

    Raises `UnexpectedAnswer` where they have none of the shapes that this version knows.
    """
    if not isinstance(answers, list):
        answers = [answers]
    elif single and not (answers and isinstance(answers[0], list)):
        answers = [answers]  # what a text or a question alone was answered with
    return [[_prediction(item) for item in (one if isinstance(one, list) else [one])] for one in answers]


def _prediction(document: Any) -> Label | Entity | Span:
    match document:
        case {"label": str(label), "score": float(score) | int(score)}:
            return Label(label, score)
        case {"answer": str(answer), "score": float(score) | int(score), "start": int(start), "end": int(end)}:
            return Span(answer, score, start, end)
        case {"score": float(score) | int(score), "word": str(word), "start": int(start), "end": int(end)}:
            group = document.get("entity_group", document.get("entity"))
            return Entity(str(group), score, word, start, end, document.get("index"))
        case _:
            raise UnexpectedAnswer("this deployment answers with something that this client cannot read")
