"""Where a deployment points, and how that changes. Every move writes its `DeploymentChange` in the same transaction.

    put         a person says what it should be, and its gate holds or there is none
    override    the same, though its gate does not hold
    promote     a job whose gate held does, or a canary or shadow that decided for itself
    abort       a canary or shadow that decided for itself ends
    rollback    back to the student before; again, to the one before that

Whether a student loads and answers is for the caller to find out first: nothing here loads one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Text, cast, or_, select
from sqlalchemy.orm import Session

from models import webhooks
from models.errors import Conflict, Missing
from models.promotion import answering, as_json, candidate, carried, plan, refuse
from models.specs import DeploymentSpec, Traffic
from models.tables import Deployment, DeploymentChange, Student, new_id, utc_now

Json = dict[str, Any]
Verb = Literal["put", "override", "promote", "abort", "rollback"]
AUTO = "auto"
"""Who moved it, where a canary or shadow decided for itself."""


@dataclass(frozen=True)
class _State:
    """What a deployment is, beside its name and version."""

    student_id: str
    gate: Json | None
    traffic: Json


def find(session: Session, *, owner: str, name: str, for_update: bool = False) -> Deployment:
    """Raises `Missing`."""
    found = look_up(session, owner=owner, name=name, for_update=for_update)
    if found is None:
        raise Missing(f"there is no deployment {name!r}")
    return found


def look_up(session: Session, *, owner: str, name: str, for_update: bool = False) -> Deployment | None:
    wanted = select(Deployment).where(Deployment.owner == owner, Deployment.name == name)
    return session.scalar(wanted.with_for_update() if for_update else wanted)


def put(
    session: Session,
    *,
    owner: str,
    name: str,
    wanted: DeploymentSpec,
    by: str,
    expected_version: int | None = None,
    must_be_new: bool = False,
) -> tuple[Deployment, bool]:
    """Make `name` what is wanted; the deployment, and whether it was made. To put what is there changes nothing.

    `expected_version` is what the caller believes to be current (0: that there is none). Raises `Conflict` (code
    `version_mismatch`) where it is not, and what `models.promotion` finds against it.
    """
    found = look_up(session, owner=owner, name=name, for_update=True)
    if must_be_new and found is not None:
        raise _mismatch(name, found.version)
    _expect(name, found, expected_version)
    planned = plan(session, found, wanted)
    refuse(planned.problems)
    state = _State(wanted.student, planned.gate, planned.traffic)
    if found is not None and state == _State(found.student_id, found.gate, found.traffic):
        return found, False
    moved = _move(session, found, state, owner=owner, name=name, verb=planned.verb, by=by, reason=planned.reason)
    return moved, found is None


def promote(
    session: Session, *, owner: str, name: str, student_id: str, by: str, gate: Json | None, reason: str
) -> Deployment:
    """Point `name` at the student of a job whose gate held. `by` is the job, `reason` the bound that held.

    A canary or shadow ends; capture goes on, and the fallback if the student can have it.
    """
    found = look_up(session, owner=owner, name=name, for_update=True)
    state = _State(student_id, gate, _carried(session, {} if found is None else found.traffic, student_id))
    return _move(session, found, state, owner=owner, name=name, verb="promote", by=by, reason=reason)


def promote_candidate(session: Session, deployment: Deployment, *, expected_version: int, reason: str) -> Deployment:
    """Point at the student of the canary or the shadow, which has decided for itself, and so ends.

    Raises `Conflict` (code `version_mismatch`) if somebody changed the deployment since.
    """
    student_id = _candidate(session, deployment, expected_version)
    state = _State(student_id, deployment.gate, _carried(session, deployment.traffic, student_id))
    return _move_on(session, deployment, state, verb="promote", by=AUTO, reason=reason)


def abort_candidate(session: Session, deployment: Deployment, *, expected_version: int, reason: str) -> Deployment:
    """End the canary or the shadow, which has decided for itself; the pointer stays.

    Raises `Conflict` (code `version_mismatch`) if somebody changed the deployment since.
    """
    _candidate(session, deployment, expected_version)
    kept = {part: value for part, value in deployment.traffic.items() if part in {"fallback", "capture"}}
    state = _State(deployment.student_id, deployment.gate, kept)
    return _move_on(session, deployment, state, verb="abort", by=AUTO, reason=reason)


def rollback(session: Session, deployment: Deployment, *, student_id: str, by: str) -> Deployment:
    """Point back at `student_id`, which `before` named, with the gate, the fallback and the capture of that time.

    Raises `Conflict` if somebody moved the deployment since.
    """
    target = _change_before(session, deployment)
    if target.student_id != student_id:
        raise _mismatch(deployment.name, deployment.version)
    state = _State(student_id, target.gate, _carried(session, target.traffic, student_id))
    return _move_on(session, deployment, state, verb="rollback", by=by)


def before(session: Session, deployment: Deployment) -> str:
    """The student that a rollback leads to: the newest before the current one that still exists.

    Raises `Conflict` (code `nothing_before`). A rollback undoes one put or promotion, so that two in a row go two back.
    """
    return _change_before(session, deployment).student_id


def history(session: Session, deployment: Deployment) -> Sequence[DeploymentChange]:
    """Every move, newest first."""
    changes = select(DeploymentChange).where(DeploymentChange.deployment_id == deployment.id)
    return session.scalars(changes.order_by(DeploymentChange.version.desc())).all()


def expect(deployment: Deployment, version: int | None) -> None:
    """Raises `Conflict` (code `version_mismatch`) if the deployment is not at `version`; None: any."""
    _expect(deployment.name, deployment, version)


def pointing_at(session: Session, student_ids: Sequence[str]) -> dict[str, list[str]]:
    """For each of the students, the names of the deployments in which it answers now: stable, or beside that one."""
    names: dict[str, list[str]] = {student_id: [] for student_id in student_ids}
    wanted = select(Deployment.student_id, Deployment.traffic, Deployment.name).where(
        or_(Deployment.student_id.in_(student_ids), cast(Deployment.traffic, Text) != "{}")
    )
    for student_id, traffic, name in session.execute(wanted.order_by(Deployment.name)):
        for one in names.keys() & answering(student_id, Traffic.model_validate(traffic)).values():
            names[one].append(name)
    return names


def _expect(name: str, found: Deployment | None, version: int | None) -> None:
    current = 0 if found is None else found.version
    if version is not None and version != current:
        raise _mismatch(name, current)


def _mismatch(name: str, version: int) -> Conflict:
    state = f"is at version {version}" if version else "does not exist"
    return Conflict(
        f"deployment {name!r} {state}: somebody changed it, or it never was what you think",
        code="version_mismatch",
        hint="read it again and send its ETag as If-Match",
    )


def _candidate(session: Session, deployment: Deployment, expected_version: int) -> str:
    """The student of the canary or the shadow, with the row locked and still at that version."""
    session.refresh(deployment, with_for_update=True)
    _expect(deployment.name, deployment, expected_version)
    found = candidate(Traffic.model_validate(deployment.traffic))
    if found is None:
        raise _mismatch(deployment.name, deployment.version)
    return found


def _change_before(session: Session, deployment: Deployment) -> DeploymentChange:
    """The change by which the student that a rollback leads to was last what it was. Raises `Conflict`."""
    trail: list[DeploymentChange] = []
    for change in reversed(history(session, deployment)):
        if change.verb == "rollback":
            while trail and trail[-1].student_id != change.student_id:
                trail.pop()
        elif trail and trail[-1].student_id == change.student_id:
            trail[-1] = change  # no move: its gate or its traffic changed
        else:
            trail.append(change)
    for change in reversed(trail[:-1]):
        if change.student_id != deployment.student_id and session.get(Student, change.student_id) is not None:
            return change
    raise Conflict(f"deployment {deployment.name!r} has pointed at no other student", code="nothing_before")


def _carried(session: Session, traffic: Json, student_id: str) -> Json:
    """What of `traffic` goes on when the pointer moves to a student, who is there."""
    session.flush()
    return as_json(carried(session, traffic, session.get_one(Student, student_id)))


def _move_on(
    session: Session, deployment: Deployment, state: _State, *, verb: Verb, by: str, reason: str = ""
) -> Deployment:
    owner, name = deployment.owner, deployment.name
    return _move(session, deployment, state, owner=owner, name=name, verb=verb, by=by, reason=reason)


def _move(
    session: Session,
    found: Deployment | None,
    state: _State,
    *,
    owner: str,
    name: str,
    verb: Verb,
    by: str,
    reason: str = "",
) -> Deployment:
    previous = None
    if found is None:
        deployment = Deployment(id=new_id("dep"), owner=owner, name=name, version=1)
        session.add(deployment)
    else:
        deployment = found
        previous = found.student_id
        found.version += 1
        found.updated_at = utc_now()
    deployment.student_id, deployment.gate, deployment.traffic = state.student_id, state.gate, state.traffic
    session.flush()
    change = DeploymentChange(
        deployment_id=deployment.id,
        version=deployment.version,
        student_id=state.student_id,
        previous_student_id=previous,
        verb=verb,
        by=by,
        reason=reason,
        gate=state.gate,
        traffic=state.traffic,
    )
    session.add(change)
    if state.student_id != previous:
        webhooks.tell_of_move(session, deployment, change)
    session.flush()
    return deployment
