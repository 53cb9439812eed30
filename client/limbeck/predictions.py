"""What /predict answers, for every kind of task, as frozen dataclasses; and what was right instead."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from limbeck.errors import UnexpectedAnswer
from limbeck.notebooks import table
from limbeck.objects import Prediction, read
from limbeck.transport import Transport, body
from limbeck.verbs import verb
from limbeck.wires import W_co


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
    """The student that computed them; None where several did."""
    prediction_id: str | None = None
    """Where the deployment's capture kept them; see `ids`."""
    arm: str | None = None
    """stable or canary, or mixed where several calls were made."""
    answered_by: str | None = None
    """Where there is a fallback: student, mixed, teacher, or the id of the student that took over."""
    server_timing: str | None = None
    raw: Any = field(default=None, repr=False, compare=False)
    parts: tuple["Predictions", ...] = field(default=(), repr=False, compare=False)
    """The answers of each call, where it took several."""

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> list[Any]:
        return self.data[position]

    @property
    def ids(self) -> list[str]:
        """The id of each input, for `client.predictions.feedback`; empty where not all of them were kept."""
        if self.parts:
            return [id_ for part in self.parts for id_ in part.ids] if all(part.ids for part in self.parts) else []
        if self.prediction_id is None:
            return []
        if len(self.data) == 1:
            return [self.prediction_id]
        return [f"{self.prediction_id}.{position}" for position in range(len(self.data))]

    def _repr_html_(self) -> str:
        """The best answer to each input."""
        return table(
            f"Predictions of {self.student or 'several students'}", [vars(one[0]) if one else {} for one in self]
        )


@dataclass(frozen=True)
class Trial:
    """What a student says to some inputs, and what its teacher says: a list for each input, as in `Predictions`."""

    student: list[list[Any]]
    teacher: list[list[Any]] | None = None
    """None: it was not asked, or cannot be; see `teacher_reason`."""
    student_milliseconds: float | None = None
    teacher_milliseconds: float | None = None
    teacher_reason: str | None = None
    raw: Any = field(default=None, repr=False, compare=False)

    def _repr_html_(self) -> str:
        """The best answers to each input, side by side."""
        pairs = zip(self.student, self.teacher or [[] for _ in self.student], strict=True)
        return table("Trial", [{"student": one[:1], "teacher": other[:1]} for one, other in pairs])


class CapturedPredictions(Generic[W_co]):
    """What deployments kept; `client.deployments.captures` lists it."""

    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def feedback(self, prediction: str | Prediction, label: Any) -> Prediction:
        """Tell the true answer, as the label's column of the task would have it. A second one replaces the first."""
        id_ = prediction if isinstance(prediction, str) else prediction.id
        response = await self._transport.request(
            "POST", f"/predictions/{id_}/feedback", json={"label": label}, idempotent=True
        )
        return read(Prediction, body(response))


def trial_of(document: Any) -> Trial:
    """The answer of /students/{id}/predict. Raises `UnexpectedAnswer`."""
    if not isinstance(document, dict):
        raise UnexpectedAnswer("this student answers with something that this client cannot read")
    student, teacher = (document.get(name) or {} for name in ("student", "teacher"))
    return Trial(
        student=answers_of(student.get("answers"), single=False),
        teacher=answers_of(teacher["answers"], single=False) if "answers" in teacher else None,
        student_milliseconds=student.get("milliseconds"),
        teacher_milliseconds=teacher.get("milliseconds"),
        teacher_reason=document.get("teacher_reason"),
        raw=document,
    )


def body_of(
    inputs: Any, top_k: int | None, function_to_apply: str | None, aggregation_strategy: str | None
) -> dict[str, Any]:
    """What is sent to be answered: the inputs, and those parameters that are given."""
    wanted = {"top_k": top_k, "function_to_apply": function_to_apply, "aggregation_strategy": aggregation_strategy}
    parameters = {name: value for name, value in wanted.items() if value is not None}
    return {"inputs": inputs, "parameters": parameters} if parameters else {"inputs": inputs}


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
