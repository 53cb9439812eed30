"""The rows on which student and teacher differ, as the artifact has them: read, judged by their truth, and chosen."""

import json
import re
import string
from collections.abc import Sequence
from typing import Any, Literal

from app import views
from models.artifacts import Store
from models.errors import ArtifactDamaged, Missing
from models.tables import Student

FILE = "disagreements.json"
Right = Literal["teacher", "student", "both", "neither"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def file_of(student: Student) -> str:
    """The key of the artifact that has them. Raises `Missing` (code `no_disagreements`)."""
    if FILE not in student.manifest.get("files", {}):
        raise Missing(
            "the rows on which this student and its teacher differ were not kept",
            code="no_disagreements",
            hint="run its job again: every student that is published now has them",
        )
    return student.artifact


def read(store: Store, artifact: str) -> list[views.Disagreement]:
    """All of them, in the order of the file. Raises `Missing` where the artifact is gone, and `ArtifactDamaged`."""
    file, _ = store.open_file(artifact, FILE)
    try:
        with file:
            rows = json.load(file)["rows"]
        return [_view(number, row) for number, row in enumerate(rows)]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(f"{FILE} cannot be read") from error


def chosen(
    rows: Sequence[views.Disagreement], *, right: Right | None, truth: str | None, after: int | None, limit: int
) -> views.Page[views.Disagreement]:
    """The page of those that `right` got right and whose truth has the label, tag or answer `truth`."""
    found = [
        row
        for row in rows
        if (after is None or row.row > after)
        and (right is None or row.right == right)
        and (truth is None or truth in _words(row.truth))
    ]
    return views.Page(data=found[:limit], has_more=len(found) > limit)


def who_is_right(truth: Any, teacher: Any, student: Any) -> Right | None:
    """By the task's own measure, without any mistake. None: nobody knows, or an answer is a number, which is never
    right but near."""
    if truth is None or (isinstance(truth, dict) and "score" in truth):
        return None
    match _is_right(truth, teacher), _is_right(truth, student):
        case True, True:
            return "both"
        case True, False:
            return "teacher"
        case False, True:
            return "student"
        case _:
            return "neither"


def _view(number: int, row: dict[str, Any]) -> views.Disagreement:
    truth, teacher, student = row["truth"], row["teacher"], row["student"]
    return views.Disagreement(
        row=number,
        input=row["input"],
        truth=truth,
        teacher=teacher,
        student=student,
        right=who_is_right(truth, teacher, student),
    )


def _is_right(truth: Any, answer: Any) -> bool:
    match truth:
        case {"label": label}:
            return bool(answer["label"] == label)
        case {"labels": labels}:
            return bool(answer["labels"] == labels)
        case {"answers": answers}:
            return _plain(answer["answer"]) in {_plain(text) for text in answers or [""]}
        case _:
            return bool(truth == answer)


def _words(truth: Any) -> list[str]:
    match truth:
        case {"label": str(label)}:
            return [label]
        case {"labels": list(words)} | {"answers": list(words)} | list(words):
            return [word for word in words if word is not None]
        case _:
            return []


def _plain(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space, as SQuAD's own script has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
