"""What a job needs and only the database knows: its dataset with its columns, the students and teachers that it names.

Another owner's things are absent here, as they are everywhere else.
"""

from collections.abc import Iterator, Sequence
from typing import assert_never

from sqlalchemy.orm import Session

from models import references
from models.errors import Problem
from models.specs import (
    FreshStudent,
    JobSpec,
    LocalTeacher,
    PretrainedStudent,
    QuestionAnswering,
    RecordedTeacher,
    SplitByColumn,
    SplitByDataset,
    SplitByShare,
    StudentFromTeacher,
    Task,
    Text2Text,
    TextClassification,
    TextGeneration,
    TextRegression,
    TokenClassification,
)
from models.specs import (
    Student as StudentSpec,
)
from models.tables import Dataset, Student, Teacher


def check_references(session: Session, owner: str, spec: JobSpec) -> list[Problem]:
    """What only the database knows to be wrong with `spec`, with JSON pointers into it as it was sent."""
    found = [*_dataset_problems(session, owner, spec)]
    for i, teacher in enumerate(spec.teachers):
        if isinstance(teacher, LocalTeacher):
            found += _model_problems(session, owner, teacher.model, f"/teachers/{i}/model")
    students: list[tuple[str, StudentSpec]] = [("/student", spec.student)] if spec.student is not None else []
    students += [(f"/stages/{i}/student", stage.student) for i, stage in enumerate(spec.stages or ())]
    for at, student in students:
        match student:
            case PretrainedStudent():
                found += _model_problems(session, owner, student.model, f"{at}/model")
            case StudentFromTeacher() | FreshStudent():
                pass
            case _:
                assert_never(student)
    return found


def _dataset_problems(session: Session, owner: str, spec: JobSpec) -> Iterator[Problem]:
    wanted: dict[str, str]
    match spec.dataset:
        case SplitByShare() | SplitByColumn():
            wanted = {"/dataset/id": spec.dataset.id}
        case SplitByDataset():
            wanted = {f"/dataset/{part}": getattr(spec.dataset, part) for part in ("train", "validation", "test")}
        case _:
            assert_never(spec.dataset)
    columns = dict(_columns(spec))
    if isinstance(spec.dataset, SplitByColumn):
        columns["/dataset/split"] = spec.dataset.split
    absent: dict[str, str] = {}
    for pointer, dataset_id in wanted.items():
        dataset = session.get(Dataset, dataset_id)
        if dataset is None or dataset.owner != owner:
            yield Problem(pointer, f"there is no dataset {dataset_id!r}", "dataset_not_found")
            continue
        if dataset.status == "failed":
            yield Problem(pointer, f"the import of dataset {dataset_id!r} failed", "dataset_failed")
            continue
        there = {column["name"] for column in dataset.columns}
        absent |= {
            at: f"dataset {dataset_id} has no column {name!r}; it has {_list(sorted(there))}"
            for at, name in columns.items()
            if name not in there
        }
        if isinstance(spec.dataset, SplitByShare):
            yield from _size_problems(spec.dataset, dataset.rows)
    yield from (Problem(at, message, "missing_column") for at, message in absent.items())


def _columns(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Pointers into `spec` and the columns that they name, of the task, of recorded answers and of slices."""
    yield from _task_columns(spec.task)
    for i, teacher in enumerate(spec.teachers):
        if isinstance(teacher, RecordedTeacher):
            yield f"/teachers/{i}/{'probabilities' if teacher.logits is None else 'logits'}", teacher.column
    for i, column in enumerate(spec.evaluation.slices):
        yield f"/evaluation/slices/{i}", column


def _task_columns(task: Task) -> Iterator[tuple[str, str]]:
    names: tuple[str, ...]
    match task:
        case TextClassification():
            names = ("text", "text_pair", "label")
        case TextRegression():
            names = ("text", "text_pair", "target")
        case TokenClassification():
            names = ("tokens", "tags")
        case QuestionAnswering():
            names = ("question", "context", "answers")
        case TextGeneration() | Text2Text():
            names = ()
        case _:
            assert_never(task)
    for name in names:
        column = getattr(task, name)
        if column is not None:
            yield f"/task/{name}", column


def _size_problems(split: SplitByShare, rows: int) -> Iterator[Problem]:
    def count(part: float) -> float:
        return part if isinstance(part, int) else part * rows

    held_out = count(split.validation) + count(split.test)
    if held_out >= rows:
        at = "/dataset/test" if count(split.test) >= count(split.validation) else "/dataset/validation"
        yield Problem(at, f"validation and test leave none of the {rows} rows to train on", "too_few_rows")


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "")


def _model_problems(session: Session, owner: str, text: str, pointer: str) -> Iterator[Problem]:
    reference = references.parse(text)
    match reference.scheme:
        case "student":
            student = session.get(Student, reference.name)
            if student is None or student.owner != owner:
                yield Problem(pointer, f"there is no student {reference.name!r}", "student_not_found")
        case "teacher":
            teacher = session.get(Teacher, reference.name)
            if teacher is None or teacher.owner != owner:
                yield Problem(pointer, f"there is no teacher {reference.name!r}", "teacher_not_found")
        case "hub" | "package" | "file":
            pass
        case _:
            assert_never(reference.scheme)
