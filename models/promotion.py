"""What a PUT on a deployment comes to: whether its students fit together, when the fallback answers, and the gate.

Whatever stands against it is found at once, each problem with a pointer into what was sent. Whether a student loads and
answers is for the caller to find out: nothing here loads one, and nothing here moves a deployment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy.orm import Session

from models.errors import Conflict, Invalid, Problem
from models.gates import Check, decide_by_report, threshold_for
from models.specs import DeploymentSpec, Fallback, GateSpec, Traffic
from models.specs.deployments import TEACHER, teacher_of
from models.tables import Deployment, Student

Json = dict[str, Any]

UNHEALTHY = "student_unhealthy"
_FAILED = "gate_failed"
_HINTS: Mapping[str, str] = {
    _FAILED: 'the deployment was not moved; to move it nevertheless, say why: "override": "…"',
    UNHEALTHY: "the deployment was not moved",
    "teacher_not_exported": "run the student's job again with export.teacher true",
    "target_unreachable": "the student's report has the whole table: cascade.thresholds",
}


@dataclass(frozen=True)
class Plan:
    """What a PUT would make of a deployment, and everything that stands against it."""

    gate: Json | None = None
    """The one in force: that of the PUT, else the deployment's own, else that of the job which made the student."""
    traffic: Json = field(default_factory=dict)
    """With the fallback's target as a threshold."""
    verb: Literal["put", "override"] = "put"
    reason: str = ""
    problems: tuple[Problem, ...] = ()
    answering: Mapping[str, str] = field(default_factory=dict)
    """Who is there and fits, by the pointer that names it: who is left to be loaded."""


def plan(
    session: Session,
    found: Deployment | None,
    wanted: DeploymentSpec,
    *,
    may_use: Callable[[Student], bool] = lambda _: True,
) -> Plan:
    """What `wanted` makes of `found`, by what the rows say. `may_use`: whether a student is there for the caller.

    A gate is decided where a student comes to serve, or may come to without anybody being asked (`auto.promote`), and
    where the gate itself changes. A canary or shadow that only answers needs none.
    """
    named = answering(wanted.student, wanted)
    rows, problems = _look_up(session, named, may_use)
    student = rows.pop("/student", None)
    if student is None:
        return Plan(problems=tuple(problems), answering={pointer: row.id for pointer, row in rows.items()})
    for pointer, row in rows.items():
        apart = difference(row, student)
        if apart is not None:
            problems.append(Problem(pointer, apart, "incompatible_student"))
    fallback = wanted.fallback
    if fallback is not None:
        try:
            fallback = resolved(fallback, student)
        except Invalid as error:
            problems += error.problems
    unfit = {problem.pointer for problem in problems}
    gate = _in_force(found, wanted, student)
    checks = [] if gate is None else list(_checks(gate, found, wanted, student, rows))
    failed = [(pointer, check) for pointer, check in checks if not check.passed]
    verb: Literal["put", "override"] = "put"
    reasons = [_whose(pointer) + check.reason for pointer, check in failed or checks]
    if failed and wanted.override is None:
        problems += [Problem(pointer, check.reason, _FAILED) for pointer, check in failed]
    elif failed:
        verb = "override"
        reasons.insert(0, str(wanted.override))
    parts = {name: getattr(wanted, name) for name in Traffic.model_fields} | {"fallback": fallback}
    return Plan(
        gate=None if gate is None else gate.model_dump(mode="json"),
        traffic=as_json(Traffic(**parts)),
        verb=verb,
        reason="\n".join(reasons),
        problems=tuple(problems),
        answering={pointer: student_id for pointer, student_id in named.items() if pointer not in unfit},
    )


def _look_up(
    session: Session, named: Mapping[str, str], may_use: Callable[[Student], bool]
) -> tuple[dict[str, Student], list[Problem]]:
    """The students that are named, by their pointers, and a problem for each that is not there."""
    rows, problems = {}, []
    for pointer, student_id in named.items():
        if student_id == teacher_of(named["/student"]):
            continue
        row = session.get(Student, student_id)
        if row is None or not may_use(row):
            problems.append(Problem(pointer, f"there is no student {student_id!r}", "not_found"))
        else:
            rows[pointer] = row
    return rows, problems


def refuse(problems: Sequence[Problem]) -> None:
    """Raises `Invalid` with all of them, or `Conflict` where the request is well and the students are not; or nothing.

    The codes of a `Conflict` are `student_unhealthy` and, where nothing else is wrong, `gate_failed`.
    """
    codes = {problem.code for problem in problems}
    if not codes:
        return
    hint = next((_HINTS[problem.code] for problem in problems if problem.code in _HINTS), None)
    if codes == {_FAILED}:
        message = f"the gate does not hold: {' '.join(problem.message for problem in problems)}"
        raise Conflict(message, code=_FAILED, hint=hint, problems=problems)
    if codes <= {_FAILED, UNHEALTHY}:
        first = next(problem for problem in problems if problem.code == UNHEALTHY)
        raise Conflict(first.message, code=UNHEALTHY, hint=_HINTS[UNHEALTHY], problems=problems)
    error = Invalid.of(problems)
    error.hint = hint
    raise error


def answering(student_id: str, traffic: Traffic) -> dict[str, str]:
    """Whoever answers, by the pointer into a PUT that names it. The teacher of `st_x` goes by `st_x/teacher`."""
    found = {"/student": student_id}
    if traffic.canary is not None:
        found["/canary/student"] = traffic.canary.student
    if traffic.shadow is not None:
        found["/shadow/student"] = traffic.shadow.student
    if traffic.fallback is not None:
        found["/fallback/to"] = traffic.fallback.asked(student_id)
    return found


def candidate(traffic: Traffic) -> str | None:
    """The student that `auto` decides about: that of the canary, or else of the shadow."""
    named = traffic.canary or traffic.shadow
    return None if named is None else named.student


def as_json(traffic: Traffic) -> Json:
    """As it is stored: the parts that there are."""
    parts = traffic.model_dump(mode="json", include=set(Traffic.model_fields))
    return {name: part for name, part in parts.items() if part is not None}


# --- students that fit together ---------------------------------------------------------------------------------------


def difference(one: Student, other: Student) -> str | None:
    """Why `one` cannot answer in the place of `other`; None if it can."""
    pairs = [
        ("task", one.manifest.get("task"), other.manifest.get("task")),
        ("multi_label", *(bool(_task(row).get("multi_label")) for row in (one, other))),
        ("text_pair", *(_task(row).get("text_pair") is not None for row in (one, other))),
        ("labels", *(sorted(row.manifest.get("labels") or []) for row in (one, other))),
    ]
    for what, its, wanted in pairs:
        if its != wanted:
            return f"its {what} is {its}, and that of {other.id} is {wanted}"
    return None


def _task(student: Student) -> Mapping[str, Any]:
    """The task of the job which made it, as its manifest has it."""
    found: Mapping[str, Any] = (student.manifest.get("spec") or {}).get("task") or {}
    return found


# --- the fallback -----------------------------------------------------------------------------------------------------


def resolved(fallback: Fallback, student: Student) -> Fallback:
    """`fallback` with its target as a threshold, by the student's report. Raises `Invalid` with pointers into a PUT."""
    problems = []
    if student.manifest.get("task") != "text-classification" or _task(student).get("multi_label"):
        message = "only a student that gives a text one label can fall back"
        problems.append(Problem("/fallback", message, "fallback_unsupported"))
    if fallback.to == TEACHER and student.teacher_artifact is None:
        message = f"the teacher of {student.id} was not published with it"
        problems.append(Problem("/fallback/to", message, "teacher_not_exported"))
    found = fallback
    if fallback.target is not None:
        measure, target = fallback.target
        pointer = f"/fallback/target_{measure}"
        if fallback.to != TEACHER:
            message = "the report's table is of the student with its teacher: with another student give a threshold"
            problems.append(Problem(pointer, message, "target_unreachable"))
        else:
            try:
                threshold = threshold_for(student.report, measure, target)
            except Invalid as error:
                problems.append(Problem(pointer, error.message, error.code))
            else:
                chosen = {"threshold": threshold.value, "expected_coverage": threshold.coverage}
                found = fallback.model_copy(update=chosen)
    if problems:
        raise Invalid.of(problems)
    return found


def carried(session: Session, traffic: Json, student: Student) -> Traffic:
    """What of a deployment's traffic goes on with another student.

    Capture does, and the fallback if the student can have it; a canary or shadow, and what decides about it, ends.
    """
    before = Traffic.model_validate(traffic)
    fallback = before.fallback
    if fallback is not None and fallback.to != TEACHER:
        other = session.get(Student, fallback.to)
        if other is None or other.id == student.id or difference(other, student) is not None:
            fallback = None
    if fallback is not None:
        try:
            fallback = resolved(fallback, student)
        except Invalid:
            fallback = None
    return Traffic(fallback=fallback, capture=before.capture)


# --- the gate ---------------------------------------------------------------------------------------------------------


def _in_force(found: Deployment | None, wanted: DeploymentSpec, student: Student) -> GateSpec | None:
    if wanted.gate is not None:
        return wanted.gate
    if found is not None and (found.gate is not None or found.student_id == student.id):
        return None if found.gate is None else GateSpec.model_validate(found.gate)
    promote = (student.manifest.get("spec") or {}).get("promote")
    return None if promote is None else GateSpec.model_validate(promote["gate"])


def _checks(
    gate: GateSpec, found: Deployment | None, wanted: DeploymentSpec, student: Student, rows: Mapping[str, Student]
) -> Iterator[tuple[str, Check]]:
    """What is decided anew, each check with a pointer to whom or what it is about."""
    # What serves, or may come to, under this gate already has been decided, or somebody has overridden it.
    settled: set[str | None] = set()
    if found is not None and found.gate == gate.model_dump(mode="json"):
        settled = {found.student_id, _promotable(Traffic.model_validate(found.traffic))}
    if student.id not in settled:
        for check in decide_by_report(gate, student.report).checks:
            yield "/student" if wanted.gate is None else f"/gate/{check.gate}", check
    pointer = "/canary/student" if wanted.canary is not None else "/shadow/student"
    if _promotable(wanted) not in {None, student.id, *settled} and pointer in rows:
        for check in decide_by_report(gate, rows[pointer].report).checks:
            yield pointer, check


def _whose(pointer: str) -> str:
    """How a check's sentence begins in the history: those of the student who serves just stand there."""
    return {"/canary/student": "Of the canary: ", "/shadow/student": "Of the shadow: "}.get(pointer, "")


def _promotable(traffic: Traffic) -> str | None:
    """The student that may come to serve without anybody being asked."""
    return candidate(traffic) if traffic.auto is not None and traffic.auto.promote else None
