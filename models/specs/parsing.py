"""From a document to a spec, or to every problem that can be seen without a database."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from models.errors import Invalid, Problem
from models.specs.jobs import Common, JobSpec, ResolvedSpec, ResolvedStage, Stage
from models.specs.methods import Hinton, Phase
from models.specs.mismatches import mismatches
from models.specs.schedules import Schedule
from models.specs.students import StudentFromTeacher
from models.specs.tasks import Task


def parse_job(document: Any) -> JobSpec:
    """The job spec of a JSON document. Raises `Invalid` with every problem that can be seen without a database."""
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise Invalid.of(problems(error, document)) from error
    wrong = [*_short_form_problems(spec), *_limits_of_this_version(spec)]
    if not wrong:
        wrong = mismatches(spec, resolve(spec))
    if wrong:
        raise Invalid.of(wrong)
    return spec


def resolve(spec: JobSpec) -> ResolvedSpec:
    """`spec` with its short forms expanded. The same spec always resolves to the same document."""
    if spec.stages is not None:
        stages = spec.stages
    else:
        student = spec.student or StudentFromTeacher(kind="from_teacher")
        stages = [
            Stage(
                student=student,
                phases=spec.phases,
                method=spec.method,
                objectives=spec.objectives,
                schedule=spec.schedule,
            )
        ]
    common = {name: getattr(spec, name) for name in Common.model_fields}
    return ResolvedSpec(**common, stages=[_resolve_stage(stage, spec.task) for stage in stages])


def _resolve_stage(stage: Stage, task: Task) -> ResolvedStage:
    schedule = stage.schedule or Schedule()
    if stage.phases is not None:
        phases = stage.phases
    elif stage.objectives is not None:
        phases = [Phase(objectives=stage.objectives, schedule=schedule)]
    else:
        phases = (stage.method or Hinton(preset="hinton")).phases(task, schedule)
    return ResolvedStage(student=stage.student, phases=phases, teacher=stage.teacher)


def _short_form_problems(spec: JobSpec) -> list[Problem]:
    found = []
    if spec.stages is not None:
        found += [
            Problem(f"/{name}", f"give {name} inside stages, or leave stages out", "ambiguous")
            for name in ("student", "phases", "method", "objectives", "schedule")
            if getattr(spec, name) is not None
        ]
    elif spec.student is None:
        found.append(Problem("/student", "say which student you want: student (one stage) or stages", "missing"))
    parts: list[tuple[str, JobSpec | Stage]] = [("", spec)]
    parts += [(f"/stages/{at}", stage) for at, stage in enumerate(spec.stages or ())]
    for at, part in parts:
        ways = [name for name in ("phases", "method", "objectives") if getattr(part, name) is not None]
        found += [
            Problem(f"{at}/{name}", f"{name} and {ways[0]} say the same thing twice", "ambiguous") for name in ways[1:]
        ]
        if part.phases is not None and part.schedule is not None:
            found.append(Problem(f"{at}/schedule", "each phase has its own schedule", "ambiguous"))
    return found


def _limits_of_this_version(spec: JobSpec) -> list[Problem]:
    if spec.resources.gpus > 1:
        message = "one job on several GPUs is not available in this version"
        return [Problem("/resources/gpus", message, "not_available_yet")]
    return []


def problems(error: ValidationError, document: Any) -> list[Problem]:
    """pydantic's errors with JSON pointers into the document as the caller wrote it."""
    return [_problem(detail, document) for detail in error.errors(include_url=False, include_context=False)]


MESSAGES: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this object",
    "tuple_type": "is not a list",
}
_PYDANTICS_OWN = frozenset(get_args(ErrorType))
_CODES: Mapping[str, str] = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "json_invalid": "invalid_json",
    "union_tag_invalid": "unknown_kind",
    "union_tag_not_found": "missing",
}


def _problem(detail: ErrorDetails, document: Any) -> Problem:
    kind = detail["type"]
    pointer = _pointer(detail["loc"], document, absent=kind == "missing")
    if kind == "union_tag_not_found" and "discriminator" in detail["msg"]:
        pointer, message = f"{pointer}/{_discriminator(detail['msg'])}", "is required"
    else:
        message = MESSAGES.get(kind, detail["msg"])
    return Problem(pointer, message, code_of(kind))


def code_of(kind: str) -> str:
    """The code of a validation error of this type. What is not pydantic's own is ours, and its type is its code."""
    return _CODES.get(kind, "invalid") if kind in _PYDANTICS_OWN else kind


def _discriminator(message: str) -> str:
    return message.split("'")[1] if "'" in message else "kind"


def _pointer(loc: Sequence[int | str], document: Any, *, absent: bool) -> str:
    """`loc` without the names of union members, which pydantic puts in and the caller never wrote."""
    parts: list[int | str] = []
    here = document
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        named = (here.get("kind"), here.get("preset")) if isinstance(here, Mapping) else ()
        inside = part in here and part not in named if isinstance(here, Mapping) else False
        if inside or (isinstance(part, int) and isinstance(here, list) and part < len(here)):
            here = here[part]
        elif not (last and absent):
            continue
        parts.append(part)
    escape: Callable[[int | str], str] = lambda part: str(part).replace("~", "~0").replace("/", "~1")  # noqa: E731
    return "".join(f"/{escape(part)}" for part in parts)
