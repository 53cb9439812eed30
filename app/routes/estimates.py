"""What can be said of a spec before it runs, from the `config.json` files that this machine can read.

The API has no torch and may not have the teacher's files; then there are no estimates, with a reason, and the worker's
preflight says the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from models import references
from models.errors import Problem
from models.specs import FreshStudent, JobSpec, LocalTeacher, PretrainedStudent, ResolvedSpec, StudentFromTeacher

_WHERE_NAMES: Mapping[str, Mapping[str, str]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {},
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
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
    intermediate: int
    positions: int
    token_types: int
    embedding: int
    pooler: bool

    def parameters(self) -> int:
        """Of embeddings, layers and pooler; a task's head is a few thousand more."""
        embeddings = (self.vocabulary + self.positions + self.token_types + 2) * self.embedding
        project = 0 if self.embedding == self.hidden else (self.embedding + 1) * self.hidden
        attention = 4 * (self.hidden + 1) * self.hidden
        feed_forward = (2 * self.hidden + 1) * self.intermediate + self.hidden
        pooler = (self.hidden + 1) * self.hidden if self.pooler else 0
        return embeddings + project + self.layers * (attention + feed_forward + 4 * self.hidden) + pooler


def estimate(spec: JobSpec, resolved: ResolvedSpec, models_folder: Path) -> Estimates:
    teacher = resolved.teachers[0]
    assert isinstance(teacher, LocalTeacher)  # noqa: S101 - the other kinds were refused when the spec was parsed
    config = _config(teacher.model, models_folder)
    if config is None:
        return _nothing(
            f"the config.json of {teacher.model} cannot be read by the API; the worker checks it in preflight"
        )
    shape = _shape(config)
    if shape is None:
        return _nothing(f"the sizes of {str(config.get('model_type'))[:40]!r} networks are not known here")
    at = "/student" if spec.stages is None else "/stages/0/student"
    student = resolved.stages[0].student
    match student:
        case StudentFromTeacher():
            wrong = _layer_problems(student, shape, at)
            if student.vocabulary is not None and student.vocabulary > shape.vocabulary:
                message = f"the teacher's vocabulary has {shape.vocabulary} tokens"
                wrong.append(Problem(f"{at}/vocabulary", message, "impossible_vocabulary"))
            if wrong:
                return Estimates(None, None, wrong)
            small = _fewer(shape, student)
        case FreshStudent():
            small = _Shape(
                vocabulary=student.vocabulary or shape.vocabulary,
                hidden=student.hidden_size,
                layers=student.layers,
                intermediate=student.intermediate_size,
                positions=512,
                token_types=2,
                embedding=student.hidden_size,
                pooler=True,
            )
        case PretrainedStudent():
            other = _shape(_config(student.model, models_folder) or {})
            if other is None:
                return _nothing(f"the config.json of {student.model} cannot be read by the API")
            small = other
        case _:
            assert_never(student)
    large, little = shape.parameters(), small.parameters()
    sizes = {"teacher": large, "student": little, "ratio": round(large / little, 2)}
    return Estimates({"parameters": sizes, "layers": {"teacher": shape.layers, "student": small.layers}}, None, [])


def _nothing(reason: str) -> Estimates:
    return Estimates(None, reason, [])


def _config(reference: str, models_folder: Path) -> dict[str, Any] | None:
    return references.read_config(references.parse(reference), models_folder)


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
            intermediate=size("intermediate_size"),
            positions=size("max_position_embeddings"),
            token_types=0 if family == "distilbert" else size("type_vocab_size", 2),
            embedding=size("embedding_size", hidden) if family == "electra" else hidden,
            pooler=family == "bert",
        )
    except ValueError:
        return None


def _fewer(shape: _Shape, student: StudentFromTeacher) -> _Shape:
    match student.layers:
        case None:
            layers = shape.layers
        case int():
            layers = student.layers
        case _:
            layers = len(student.layers)
    return _Shape(
        vocabulary=student.vocabulary or shape.vocabulary,
        hidden=shape.hidden,
        layers=layers,
        intermediate=shape.intermediate,
        positions=shape.positions,
        token_types=shape.token_types,
        embedding=shape.embedding,
        pooler=shape.pooler,
    )


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
