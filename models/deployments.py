"""Where a deployment points, and how that changes. Every move writes its `DeploymentChange` in the same transaction.

    put        a person points it at a student
    promote    a job whose gate held does
    rollback   back to the student before; again, to the one before that

Whether the student is fit to serve is for the caller to find out first: nothing here loads one.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.errors import Conflict, Missing
from models.tables import Deployment, DeploymentChange, Student, new_id, utc_now


def find(session: Session, *, owner: str, name: str, for_update: bool = False) -> Deployment:
    """Raises `Missing`."""
    found = _find(session, owner, name, for_update=for_update)
    if found is None:
        raise Missing(f"there is no deployment {name!r}")
    return found


def put(
    session: Session,
    *,
    owner: str,
    name: str,
    student_id: str,
    by: str,
    gate: dict[str, Any] | None = None,
    expected_version: int | None = None,
    must_be_new: bool = False,
) -> tuple[Deployment, bool]:
    """Point `name` at a student; the deployment, and whether it was made. To put what is there already changes nothing.

    `expected_version` is what the caller believes to be current (0: that there is none). Raises `Conflict` (code
    `version_mismatch`) where it is not.
    """
    found = _find(session, owner, name, for_update=True)
    if must_be_new and found is not None:
        raise _mismatch(name, found.version)
    _expect(name, found, expected_version)
    if found is not None and found.student_id == student_id and found.gate == gate:
        return found, False
    return _point(session, found, owner=owner, name=name, student_id=student_id, verb="put", by=by, gate=gate)


def promote(
    session: Session, *, owner: str, name: str, student_id: str, by: str, gate: dict[str, Any] | None, reason: str
) -> Deployment:
    """Point `name` at the student of a job whose gate held. `by` is the job, `reason` the bound that held."""
    found = _find(session, owner, name, for_update=True)
    moved, _ = _point(
        session, found, owner=owner, name=name, student_id=student_id, verb="promote", by=by, gate=gate, reason=reason
    )
    return moved


def rollback(session: Session, deployment: Deployment, *, student_id: str, by: str) -> Deployment:
    """Point back at `student_id`, which `before` named. Raises `Conflict` if somebody moved the deployment since."""
    if before(session, deployment) != student_id:
        raise _mismatch(deployment.name, deployment.version)
    moved, _ = _point(
        session,
        deployment,
        owner=deployment.owner,
        name=deployment.name,
        student_id=student_id,
        verb="rollback",
        by=by,
        gate=deployment.gate,
    )
    return moved


def before(session: Session, deployment: Deployment) -> str:
    """The student that a rollback leads to: the newest before the current one that still exists.

    Raises `Conflict` (code `nothing_before`). A rollback undoes one put or promotion, so that two in a row go two back.
    """
    trail: list[str] = []
    for change in reversed(history(session, deployment)):
        if change.verb == "rollback":
            while trail and trail[-1] != change.student_id:
                trail.pop()
        else:
            trail.append(change.student_id)
    for student_id in reversed(trail[:-1]):
        if student_id != deployment.student_id and session.get(Student, student_id) is not None:
            return student_id
    raise Conflict(f"deployment {deployment.name!r} has pointed at no other student", code="nothing_before")


def history(session: Session, deployment: Deployment) -> Sequence[DeploymentChange]:
    """Every move, newest first."""
    changes = select(DeploymentChange).where(DeploymentChange.deployment_id == deployment.id)
    return session.scalars(changes.order_by(DeploymentChange.version.desc())).all()


def expect(deployment: Deployment, version: int | None) -> None:
    """Raises `Conflict` (code `version_mismatch`) if the deployment is not at `version`; None: any."""
    _expect(deployment.name, deployment, version)


def pointing_at(session: Session, student_ids: Sequence[str]) -> dict[str, list[str]]:
    """For each of the students, the names of the deployments that point at it now."""
    names: dict[str, list[str]] = {student_id: [] for student_id in student_ids}
    wanted = select(Deployment.student_id, Deployment.name).where(Deployment.student_id.in_(student_ids))
    for student_id, name in session.execute(wanted.order_by(Deployment.name)):
        names[student_id].append(name)
    return names


def _find(session: Session, owner: str, name: str, *, for_update: bool) -> Deployment | None:
    wanted = select(Deployment).where(Deployment.owner == owner, Deployment.name == name)
    return session.scalar(wanted.with_for_update() if for_update else wanted)


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


def _point(
    session: Session,
    found: Deployment | None,
    *,
    owner: str,
    name: str,
    student_id: str,
    verb: str,
    by: str,
    gate: dict[str, Any] | None,
    reason: str = "",
) -> tuple[Deployment, bool]:
    previous = None
    if found is None:
        deployment = Deployment(id=new_id("dep"), owner=owner, name=name, student_id=student_id, gate=gate, version=1)
        session.add(deployment)
    else:
        deployment = found
        previous = found.student_id
        found.student_id = student_id
        found.gate = gate
        found.version += 1
        found.updated_at = utc_now()
    session.flush()
    session.add(
        DeploymentChange(
            deployment_id=deployment.id,
            version=deployment.version,
            student_id=student_id,
            previous_student_id=previous,
            verb=verb,
            by=by,
            reason=reason,
        )
    )
    session.flush()
    return deployment, found is None
