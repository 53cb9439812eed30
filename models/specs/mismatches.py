"""Parts of a spec that are each possible and do not go together. Needs no database and no checkpoint."""

from collections.abc import Iterator

from models.errors import Problem
from models.specs.jobs import JobSpec, ResolvedSpec
from models.specs.objectives import (
    AttentionScores,
    AttentionTransfer,
    Embeddings,
    HardLabels,
    HiddenStates,
    LogitDistance,
    Objective,
    Relations,
    SoftTargets,
)
from models.specs.students import PretrainedStudent
from models.specs.tasks import TextClassification, TextRegression
from models.specs.teachers import LocalTeacher, RecordedTeacher, SelfTeacher

FEATURES = (HiddenStates, AttentionTransfer, AttentionScores, Embeddings, Relations)
"""Objectives that look inside both networks."""


def mismatches(spec: JobSpec, resolved: ResolvedSpec) -> list[Problem]:
    """What of `spec` contradicts itself, with pointers into it as it was sent."""
    return [
        *_teacher_problems(spec, resolved),
        *_student_problems(spec, resolved),
        *_objective_problems(spec, resolved),
        *_gate_problems(spec),
        *_export_problems(spec),
    ]


def _teacher_problems(spec: JobSpec, resolved: ResolvedSpec) -> Iterator[Problem]:
    teachers = spec.teachers
    if spec.combine is not None and len(teachers) == 1:
        yield Problem("/combine", "there is one teacher, and nothing to combine", "one_teacher")
    weights = [teacher.weight for teacher in teachers if isinstance(teacher, LocalTeacher | RecordedTeacher)]
    if weights and not any(weights):
        yield Problem("/teachers", "at least one teacher must have a weight above 0", "no_weight")
    for place, teacher in enumerate(teachers):
        at = f"/teachers/{place}"
        if isinstance(teacher, SelfTeacher):
            if len(teachers) > 1:
                yield Problem(at, "a student that teaches itself has no other teacher beside it", "self_alone")
            elif len(resolved.stages) > 1:
                yield Problem(at, "a student that teaches itself has one stage", "self_alone")
        elif isinstance(teacher, RecordedTeacher):
            if not isinstance(spec.task, TextClassification):
                yield Problem(at, "recorded answers are for text-classification", "teacher_unsupported")
        elif isinstance(teacher, LocalTeacher) and teacher.labels and isinstance(spec.task, TextRegression):
            yield Problem(f"{at}/labels", "a regression has no labels", "no_labels_to_name")


def _student_problems(spec: JobSpec, resolved: ResolvedSpec) -> Iterator[Problem]:
    first = spec.teachers[0]
    for place, stage in enumerate(resolved.stages):
        if isinstance(stage.student, PretrainedStudent):
            continue
        if place and stage.teacher == "previous":
            continue
        at = _stage(spec, place) + "/student"
        if isinstance(first, SelfTeacher) and first.model is None:
            message = f"a {stage.student.kind} student is made from a model: name one here, or choose pretrained"
            yield Problem("/teachers/0/model", message, "missing")
        elif all(isinstance(teacher, RecordedTeacher) for teacher in spec.teachers):
            message = "recorded answers come without a network to make the student from; choose the kind pretrained"
            yield Problem(f"{at}/kind", message, "no_network")


def _objective_problems(spec: JobSpec, resolved: ResolvedSpec) -> Iterator[Problem]:
    for stage_number, stage in enumerate(resolved.stages):
        previous = stage_number > 0 and stage.teacher == "previous"
        for number, phase in enumerate(stage.phases):
            for place, objective in enumerate(phase.objectives):
                at = _objective(spec, stage_number, number, place)
                yield from _one_objective(spec, objective, at, alone=previous or len(spec.teachers) == 1)
        last = stage.phases[-1]
        if not any(one.weight and not isinstance(one, FEATURES) for one in last.objectives):
            at = _phase(spec, stage_number, len(stage.phases) - 1)
            message = "the last phase trains no answer: add soft_targets, logit_distance or hard_labels"
            yield Problem(at, message, "no_output_objective")


def _one_objective(spec: JobSpec, objective: Objective, at: str, *, alone: bool) -> Iterator[Problem]:
    match objective:
        case SoftTargets():
            if isinstance(spec.task, TextRegression):
                message = "a number has no distribution to soften; use logit_distance"
                yield Problem(at, message, "objective_unsupported")
            if "beta" in objective.model_fields_set and objective.divergence != "jsd":
                yield Problem(f"{at}/beta", 'beta belongs to "divergence": "jsd"', "ambiguous")
        case LogitDistance():
            if not alone and spec.combine != "logits":
                message = 'the mean of probabilities has no logits; say "combine": "logits"'
                yield Problem(at, message, "combine_logits_needed")
        case HardLabels():
            pass
        case _:
            if not alone:
                yield Problem(
                    at, f"{objective.kind} compares with one network, and there are several", "one_teacher_needed"
                )
            elif isinstance(spec.teachers[0], RecordedTeacher):
                yield Problem(
                    at, f"{objective.kind} looks into a network, and recorded answers have none", "no_network"
                )
            elif isinstance(spec.teachers[0], SelfTeacher) and spec.teachers[0].ema is not None:
                yield Problem(
                    at,
                    f"a moving average teaches by its answers, and {objective.kind} looks inside",
                    "one_teacher_needed",
                )


def _gate_problems(spec: JobSpec) -> Iterator[Problem]:
    if (
        spec.promote is not None
        and spec.promote.gate.min_agreement is not None
        and isinstance(spec.task, TextRegression)
    ):
        message = "two numbers are never quite equal, so that there is no agreement; use max_drop"
        yield Problem("/promote/gate/min_agreement", message, "gate_unsupported")


def _export_problems(spec: JobSpec) -> Iterator[Problem]:
    if not spec.export.teacher:
        return
    message = None
    if len(spec.teachers) > 1:
        message = "several teachers are no single network to export; name one local teacher, or leave this out"
    elif isinstance(spec.teachers[0], RecordedTeacher):
        message = "recorded answers have no network to export; name a local teacher, or leave this out"
    elif isinstance(spec.teachers[0], SelfTeacher):
        message = (
            "a student that teaches itself has no other network to export; name a local teacher, or leave this out"
        )
    if message is not None:
        yield Problem("/export/teacher", message, "teacher_not_exportable")


# --- where a part of the resolved spec stands in the one that was sent ------------------------------------------------


def _stage(spec: JobSpec, stage: int) -> str:
    return "" if spec.stages is None else f"/stages/{stage}"


def _phase(spec: JobSpec, stage: int, phase: int) -> str:
    part = spec if spec.stages is None else spec.stages[stage]
    if part.phases is not None:
        return f"{_stage(spec, stage)}/phases/{phase}"
    return f"{_stage(spec, stage)}/{'objectives' if part.objectives is not None else 'method'}"


def _objective(spec: JobSpec, stage: int, phase: int, place: int) -> str:
    part = spec if spec.stages is None else spec.stages[stage]
    at = _phase(spec, stage, phase)
    if part.phases is not None:
        return f"{at}/objectives/{place}"
    return f"{at}/{place}" if part.objectives is not None else at
