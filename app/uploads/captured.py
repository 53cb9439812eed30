"""What a deployment captured becomes rows of a dataset, under the column names of its student's task; and what is a
true answer of each kind of task.

A captured row is taken as it was kept, redacted. Its words are those between white space.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, assert_never

import pyarrow as pa

from app.uploads.rows import ANSWERS, FLOAT, STRING, STRINGS, check_answers
from models.answers import Kind
from models.decoding import OUTSIDE
from models.errors import Conflict, Invalid, Problem

Labels = Literal["feedback", "answers", "both"]

_FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "text-classification": ("text", "text_pair", "label"),
    "text-regression": ("text", "text_pair", "target"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers"),
}
"""The columns of a task, as its spec names them; the last one has the label."""
_ABOUT = ("answer", "score", "captured_at", "student")


@dataclass(frozen=True)
class Row:
    """One captured input, as `models.tables.Prediction` has it."""

    input: Any
    answer: Any
    label: Any | None
    student: str
    captured_at: datetime


@dataclass(frozen=True)
class Task:
    """What a student was trained to do."""

    kind: Kind
    labels: tuple[str, ...]
    columns: Mapping[str, str]
    """The name of each column of `_FIELDS` that the task has."""
    multi_label: bool = False

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Task":
        """Of a student's manifest. Raises `Conflict` (code `unknown_task`) for one that does not say."""
        kind = next((one for one in _FIELDS if one == manifest.get("task")), None)
        if kind is None:
            raise Conflict("the student's manifest does not say what its task is", code="unknown_task")
        spec = manifest.get("spec", {}).get("task", {})
        optional = {"text_pair": spec.get("text_pair")}
        columns = {name: optional.get(name, spec.get(name, name)) for name in _FIELDS[kind]}
        return cls(
            kind,
            tuple(manifest.get("labels", ())),
            {name: column for name, column in columns.items() if column is not None},
            bool(spec.get("multi_label")),
        )

    @property
    def label_column(self) -> str:
        return self.columns[_FIELDS[self.kind][-1]]

    # --- rows of a dataset ---

    def schema(self) -> pa.Schema:
        """The task's columns, then `answer` (JSON), `score`, `captured_at` and `student`.

        Where the task has a column of such a name, the other one is `captured_…`.
        """
        inputs = list(self.columns.values())[:-1]
        return pa.schema(
            [
                *(pa.field(name, STRINGS if self.kind == "token-classification" else STRING) for name in inputs),
                pa.field(self.label_column, self._label_type()),
                *(pa.field(name, FLOAT if about == "score" else STRING) for about, name in self._about().items()),
            ]
        )

    def rows(self, captured: Sequence[Row], labels: Labels, unsure_below: float | None) -> Iterator[dict[str, Any]]:
        """Those whose input suits the task and, with `unsure_below`, whose answer has a score below it.

        A dataset has no NUL characters, so an input with one is left out too.
        """
        about = self._about()
        for row in captured:
            inputs = self._inputs(row.input)
            score = self.score(row.answer)
            if inputs is None or _has_nul(row.input):
                continue
            if unsure_below is not None and (score is None or score >= unsure_below):
                continue
            truth = row.label if labels != "answers" else None
            if truth is None and labels != "feedback":
                truth = self.answered(row.answer, row.input)
            yield {
                **inputs,
                self.label_column: truth,
                about["answer"]: json.dumps(row.answer, ensure_ascii=False),
                about["score"]: score,
                about["captured_at"]: row.captured_at.isoformat(),
                about["student"]: row.student,
            }

    def score(self, answer: Any) -> float | None:
        """How sure the student was: the score of its answer, of several that of the least sure; None where it has none.

        Of any number of labels each is an answer, yes or no. Scores are as the caller's parameters made them.
        """
        match self.kind:
            case "text-classification":
                scores = [float(one["score"]) for one in answer]
                return min((max(one, 1 - one) for one in scores), default=None) if self.multi_label else scores[0]
            case "text-regression":
                return None
            case "token-classification":
                return min((float(one["score"]) for one in answer), default=None)
            case "question-answering":
                return float(_best(answer)["score"])
            case _:
                assert_never(self.kind)

    def answered(self, answer: Any, given: Any) -> Any:
        """The student's answer as the label's column would have it."""
        match self.kind:
            case "text-classification":
                if self.multi_label:
                    return [label for label in self.labels if label in _above_half(answer)]
                return answer[0]["label"]
            case "text-regression":
                return float(answer[0]["score"])
            case "token-classification":
                return self._tags(answer, given)
            case "question-answering":
                best = _best(answer)
                found = [best] if best["answer"] else []
                return {"text": [one["answer"] for one in found], "answer_start": [one["start"] for one in found]}
            case _:
                assert_never(self.kind)

    # --- what is true ---

    def truth(self, told: Any, given: Any) -> Any:
        """`told`, somebody's label for the captured input `given`, as the label's column has it.

        One label: text. Any number: a list of them, which may be empty. A number. Tags: one for each word, or the
        entities as `/predict` has them. Answers: `{"text": […], "answer_start": […]}`, or the text of one, which is
        looked for in the context ("": it has none). Raises `Invalid` (code `bad_label`) with the pointer `/label`.
        """
        match self.kind:
            case "text-classification":
                return self._known_labels(told) if self.multi_label else self._known_label(told)
            case "text-regression":
                if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
                    raise _bad("is a number")
                return float(told)
            case "token-classification":
                return self._known_tags(told, given)
            case "question-answering":
                return _known_answers(told, given)
            case _:
                assert_never(self.kind)

    def _known_label(self, told: Any) -> str:
        if not isinstance(told, str) or told not in self.labels:
            raise _bad(f"is one of {', '.join(self.labels)[:500]}")
        return told

    def _known_labels(self, told: Any) -> list[str]:
        if not isinstance(told, list) or not all(isinstance(one, str) and one in self.labels for one in told):
            raise _bad(f"is a list of some of {', '.join(self.labels)[:500]}")
        return [label for label in self.labels if label in told]

    def _known_tags(self, told: Any, given: Any) -> list[str]:
        words = _words(given)
        if isinstance(told, list) and all(_is_entity(one) for one in told):
            unknown = {one["entity_group"] for one in told if self._tag(one, first=True) not in self.labels}
            if unknown:
                raise _bad(f"has entities that the student does not know: {', '.join(sorted(unknown))[:200]}")
            return self._tags(told, given)
        if not isinstance(told, list) or not all(isinstance(one, str) and one in self.labels for one in told):
            raise _bad(f"is a list of tags, of {', '.join(self.labels)[:500]}, or of entities")
        if len(told) != len(words):
            raise _bad(f"has {len(told)} tags; the text as it was kept has {len(words)} words between white space")
        return told

    def _tags(self, entities: Sequence[Mapping[str, Any]], given: Any) -> list[str]:
        """One tag for each word of the text `given`: the first one that an entity reaches begins it."""
        tags = []
        before: int | None = None
        for start, end in _places(given):
            found = next((at for at, one in enumerate(entities) if one["start"] < end and start < one["end"]), None)
            tags.append(OUTSIDE if found is None else self._tag(entities[found], first=found != before))
            before = found
        return tags

    def _tag(self, entity: Mapping[str, Any], *, first: bool) -> str:
        """Of an entity, or of a token, which has its tag already."""
        if "entity" in entity:
            return str(entity["entity"])
        group = str(entity["entity_group"])
        prefixed = f"{'B' if first else 'I'}-{group}"
        return prefixed if prefixed in self.labels else f"I-{group}" if f"I-{group}" in self.labels else group

    def _label_type(self) -> pa.DataType:
        match self.kind:
            case "text-classification":
                return STRINGS if self.multi_label else STRING
            case "text-regression":
                return FLOAT
            case "token-classification":
                return STRINGS
            case "question-answering":
                return ANSWERS
            case _:
                assert_never(self.kind)

    def _about(self) -> dict[str, str]:
        taken = set(self.columns.values())
        return {name: f"captured_{name}" if name in taken else name for name in _ABOUT}

    def _inputs(self, given: Any) -> dict[str, Any] | None:
        """The columns of an input; None for one that is of another kind of task."""
        columns = self.columns
        match self.kind, given:
            case "text-classification" | "text-regression", str():
                return {columns["text"]: given, **({columns["text_pair"]: None} if "text_pair" in columns else {})}
            case "text-classification" | "text-regression", {"text": text, "text_pair": pair} if "text_pair" in columns:
                return {columns["text"]: text, columns["text_pair"]: pair}
            case "token-classification", str():
                return {columns["tokens"]: _words(given)}
            case "question-answering", {"question": question, "context": context}:
                return {columns["question"]: question, columns["context"]: context}
            case _:
                return None


def _known_answers(told: Any, given: Any) -> dict[str, Any]:
    context = given.get("context", "") if isinstance(given, dict) else ""
    if isinstance(told, str):
        start = context.find(told)
        if start < 0:
            raise _bad("is not in the context as it was kept")
        return {"text": [told] if told else [], "answer_start": [start] if told else []}
    if not isinstance(told, dict):
        raise _bad('is an answer\'s text, or {"text": ["…"], "answer_start": [17]}')
    try:
        check_answers(told)
    except ValueError as error:
        raise _bad(str(error)) from error
    for text, start in zip(told["text"], told["answer_start"], strict=True):
        if start < 0 or not text or not context.startswith(text, start):
            raise _bad(f"has the answer {text[:60]!r}, which does not begin at {start} of the context as it was kept")
    return {"text": told["text"], "answer_start": told["answer_start"]}


def _is_entity(one: Any) -> bool:
    match one:
        case {"entity_group": str(), "start": int(start), "end": int(end)}:
            return 0 <= start < end
        case _:
            return False


def _best(answer: Any) -> Mapping[str, Any]:
    """Of one answer to a question or, with `top_k`, of several."""
    best: Mapping[str, Any] = answer[0] if isinstance(answer, list) else answer
    return best


def _above_half(answer: Sequence[Mapping[str, Any]]) -> set[str]:
    return {one["label"] for one in answer if one["score"] > 0.5}


def _has_nul(given: Any) -> bool:
    return any("\0" in text for text in ([given] if isinstance(given, str) else given.values()))


def _words(given: Any) -> list[str]:
    return [given[start:end] for start, end in _places(given)]


def _places(given: Any) -> list[tuple[int, int]]:
    """Where the words of a text begin and end."""
    found, end = [], 0
    for word in given.split() if isinstance(given, str) else ():
        start = given.index(word, end)
        end = start + len(word)
        found.append((start, end))
    return found


def _bad(message: str) -> Invalid:
    return Invalid.of([Problem("/label", message, "bad_label")])
