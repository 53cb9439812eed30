"""What /predict answers, for every kind of task, as frozen dataclasses; and what was right instead."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import UnexpectedAnswer
from limbeck.objects import Prediction, read
from limbeck.transport import Transport, body


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
    prediction_id: str | None = None
    """Where the deployment's capture kept them; see `ids`."""
    arm: str | None = None
    """stable or canary."""
    answered_by: str | None = None
    """Where there is a fallback: student, mixed, teacher, or the id of the student that took over."""
    server_timing: str | None = None
    raw: Any = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> list[Any]:
        return self.data[position]

    @property
    def ids(self) -> list[str]:
        """The id of each input, for `client.predictions.feedback`; empty where they were not kept."""
        if self.prediction_id is None:
            return []
        if len(self.data) == 1:
            return [self.prediction_id]
        return [f"{self.prediction_id}.{position}" for position in range(len(self.data))]


class CapturedPredictions:
    """What deployments kept; `client.deployments.captures` lists it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def feedback(self, prediction: str | Prediction, label: Any) -> Prediction:
        """Tell the true answer, as the label's column of the task would have it. A second one replaces the first."""
        id_ = prediction if isinstance(prediction, str) else prediction.id
        response = self._transport.request(
            "POST", f"/predictions/{id_}/feedback", json={"label": label}, idempotent=True
        )
        return read(Prediction, body(response))


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
