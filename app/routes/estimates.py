"""What can be said of a spec before it runs, from the `config.json` files that this machine can read.

The API has no torch and may not have the teacher's files; then there are no estimates, with a reason, and the worker's
preflight says the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

from models import references
from models.errors import Problem
from models.specs import (
    AttentionScores,
    AttentionTransfer,
    FreshStudent,
    HiddenStates,
    JobSpec,
    LocalTeacher,
    Objective,
    PretrainedStudent,
    QuestionAnswering,
    Relations,
    ResolvedSpec,
    SelfTeacher,
    Student,
    StudentFromTeacher,
    Task,
    TokenClassification,
)

_WHERE_NAMES: Mapping[str, Mapping[str, str]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {},
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
}


@dataclass(frozen=True)
class Estimates:
    """`found` is null where nothing can be said; `reason` says why. `problems` point into the spec as it was sent."""

    found: dict[str, Any] | None
    reason: str | None
    problems: list[Problem]


@dataclass(frozen=True)
class _Shape:
    """An encoder's sizes, by BERT's names."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int
    embedding: int
    pooler: bool
    """Whether a head over the text as a whole stands on a pooler, which is part of BERT's body."""

    def parameters(self, task: Task) -> int:
        """Of embeddings, layers and pooler; a task's last layers are a few thousand more."""
        embeddings = (self.vocabulary + self.positions + self.token_types + 2) * self.embedding
        project = 0 if self.embedding == self.hidden else (self.embedding + 1) * self.hidden
        attention = 4 * (self.hidden + 1) * self.hidden
        feed_forward = (2 * self.hidden + 1) * self.intermediate + self.hidden
        whole = not isinstance(task, TokenClassification | QuestionAnswering)
        pooler = (self.hidden + 1) * self.hidden if self.pooler and whole else 0
        return embeddings + project + self.layers * (attention + feed_forward + 4 * self.hidden) + pooler


class _UnknownError(Exception):
    """Nothing can be said, for the reason that is its message."""


def estimate(spec: JobSpec, resolved: ResolvedSpec, models_folder: Path) -> Estimates:
    """The sizes of the first teacher and the last student, and what each stage asks for that cannot be."""
    try:
        teacher = _teacher(resolved, models_folder)
        problems: list[Problem] = []
        small = source = teacher
        for number, stage in enumerate(resolved.stages):
            if stage.teacher == "original":
                source = teacher
            at = "" if spec.stages is None else f"/stages/{number}"
            problems += _student_problems(stage.student, source, f"{at}/student")
            if problems:
                break
            small = _student(stage.student, source, models_folder)
            problems += _objective_problems(spec, resolved, number, small, source)
            source = small
    except _UnknownError as error:
        return Estimates(None, str(error), [])
    if problems:
        return Estimates(None, None, problems)
    large, little = teacher.parameters(resolved.task), small.parameters(resolved.task)
    sizes = {"teacher": large, "student": little, "ratio": round(large / little, 2)}
    return Estimates({"parameters": sizes, "layers": {"teacher": teacher.layers, "student": small.layers}}, None, [])


# --- shapes -----------------------------------------------------------------------------------------------------------


def _teacher(resolved: ResolvedSpec, models_folder: Path) -> _Shape:
    """What the first student is made from, or compared with."""
    teacher, student = resolved.teachers[0], resolved.stages[0].student
    if isinstance(teacher, LocalTeacher):
        return _opened(teacher.model, models_folder)
    if isinstance(teacher, SelfTeacher) and teacher.model is not None:
        return _opened(teacher.model, models_folder)
    if isinstance(teacher, SelfTeacher) and isinstance(student, PretrainedStudent):
        return _opened(student.model, models_folder)
    raise _UnknownError("the first teacher is recorded answers, and the size of what gave them is not known")


def _opened(reference: str, models_folder: Path) -> _Shape:
    config = references.read_config(references.parse(reference), models_folder)
    if config is None:
        raise _UnknownError(
            f"the config.json of {reference} cannot be read by the API; the worker checks it in preflight"
        )
    shape = _shape(config)
    if shape is None:
        raise _UnknownError(f"the sizes of {str(config.get('model_type'))[:40]!r} networks are not known here")
    return shape


def _shape(config: Mapping[str, Any]) -> _Shape | None:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _WHERE_NAMES:
        return None
    names = _WHERE_NAMES[family]

    def size(name: str, default: int | None = None) -> int:
        value = config.get(names.get(name, name), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(name)
        return value

    try:
        hidden = size("hidden_size")
        return _Shape(
            vocabulary=size("vocab_size"),
            hidden=hidden,
            layers=size("num_hidden_layers"),
            heads=max(1, size("num_attention_heads")),
            intermediate=size("intermediate_size"),
            positions=size("max_position_embeddings"),
            token_types=0 if family == "distilbert" else size("type_vocab_size", 2),
            embedding=size("embedding_size", hidden) if family == "electra" else hidden,
            pooler=family == "bert",
        )
    except ValueError:
        return None


def _student(student: Student, source: _Shape, models_folder: Path) -> _Shape:
    match student:
        case StudentFromTeacher():
            return _fewer(source, student)
        case FreshStudent():
            return _Shape(
                vocabulary=student.vocabulary or source.vocabulary,
                hidden=student.hidden_size,
                layers=student.layers,
                heads=student.heads,
                intermediate=student.intermediate_size,
                positions=source.positions,
                token_types=2,
                embedding=student.hidden_size,
                pooler=True,
            )
        case PretrainedStudent():
            return _opened(student.model, models_folder)
        case _:
            assert_never(student)


def _fewer(shape: _Shape, student: StudentFromTeacher) -> _Shape:
    layers = len(student.layers) if isinstance(student.layers, list) else student.layers
    hidden = student.hidden_size or shape.hidden
    return replace(
        shape,
        vocabulary=student.vocabulary or shape.vocabulary,
        layers=layers or shape.layers,
        hidden=hidden,
        heads=student.heads or max(1, hidden * shape.heads // shape.hidden),
        intermediate=student.intermediate_size or shape.intermediate,
        embedding=hidden if shape.embedding == shape.hidden else shape.embedding,
    )


# --- the impossible ---------------------------------------------------------------------------------------------------


def _student_problems(student: Student, source: _Shape, at: str) -> list[Problem]:
    if isinstance(student, PretrainedStudent):
        return []
    found = []
    if student.vocabulary is not None and student.vocabulary > source.vocabulary:
        message = f"the teacher's vocabulary has {source.vocabulary} tokens"
        found.append(Problem(f"{at}/vocabulary", message, "impossible_vocabulary"))
    if isinstance(student, StudentFromTeacher):
        found += [*_layer_problems(student, source, at), *_width_problems(student, source, at)]
    return found


def _layer_problems(student: StudentFromTeacher, shape: _Shape, at: str) -> list[Problem]:
    has = f"the teacher has {shape.layers} layers"
    match student.layers:
        case None:
            return []
        case int() as count:
            return [Problem(f"{at}/layers", f"{has}", "impossible_layers")] if count > shape.layers else []
        case chosen:
            return [
                Problem(f"{at}/layers/{position}", f"{has}, 0 to {shape.layers - 1}", "impossible_layers")
                for position, layer in enumerate(chosen)
                if layer >= shape.layers
            ]


def _width_problems(student: StudentFromTeacher, shape: _Shape, at: str) -> list[Problem]:
    """The same rules as the worker's, which also says them for families whose config is not read here."""
    larger = [
        Problem(f"{at}/{name}", f"the teacher's {name} is {there}, and {asked} is asked for", "impossible_student")
        for name, asked, there in (
            ("hidden_size", student.hidden_size, shape.hidden),
            ("heads", student.heads, shape.heads),
            ("intermediate_size", student.intermediate_size, shape.intermediate),
        )
        if asked is not None and asked > there
    ]
    wide = max(1, shape.hidden // shape.heads)
    hidden, heads = student.hidden_size, student.heads
    if larger:
        return larger
    if hidden is None and heads is not None and heads != shape.heads:
        message = f"{heads} heads of the teacher's width {wide} need hidden_size {heads * wide} beside them"
        return [Problem(f"{at}/heads", message, "impossible_student")]
    if hidden is not None and hidden % (wide if heads is None else heads):
        reason = f"{wide}, the width of the teacher's heads" if heads is None else f"heads {heads}"
        message = f"hidden_size {hidden} is not a multiple of {reason}"
        return [Problem(f"{at}/hidden_size", message, "impossible_student")]
    return []


def _objective_problems(
    spec: JobSpec, resolved: ResolvedSpec, stage: int, student: _Shape, teacher: _Shape
) -> Iterator[Problem]:
    """Layers that are named where there are none."""
    part = spec if spec.stages is None else spec.stages[stage]
    at = "" if spec.stages is None else f"/stages/{stage}"
    if part.method is not None:
        phases = [(f"{at}/method", phase.objectives, True) for phase in resolved.stages[stage].phases]
    elif part.objectives is not None:
        phases = [(f"{at}/objectives", part.objectives, False)]
    else:
        given = enumerate(part.phases or ())
        phases = [(f"{at}/phases/{number}/objectives", phase.objectives, False) for number, phase in given]
    for where, objectives, preset in phases:
        for place, objective in enumerate(objectives):
            for inside, whose, asked, there in _named_layers(objective, student.layers, teacher.layers):
                if asked >= there:
                    message = f"the {whose} has {there} of them, 0 to {there - 1}"
                    # A preset's objectives are not written in the spec; its own parameters are.
                    yield Problem(where if preset else f"{where}/{place}/{inside}", message, "impossible_layers")


def _named_layers(objective: Objective, student: int, teacher: int) -> Iterator[tuple[str, str, int, int]]:
    """Each number of a layer or state that an objective names: where, whose, which, and how many there are."""
    if isinstance(objective, Relations):
        for name, asked, there in (
            ("student_layer", objective.student_layer, student),
            ("teacher_layer", objective.teacher_layer, teacher),
        ):
            if asked is not None:
                yield name, name.removesuffix("_layer"), asked, there
    elif isinstance(objective, HiddenStates | AttentionTransfer | AttentionScores) and isinstance(
        objective.layers, list
    ):
        # States begin with the embedding's output.
        more = int(isinstance(objective, HiddenStates))
        for place, pair in enumerate(objective.layers):
            for side, (whose, there) in enumerate((("student", student + more), ("teacher", teacher + more))):
                yield f"layers/{place}/{side}", whose, pair[side], there
