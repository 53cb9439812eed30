"""What a deployment's arms have seen of real calls, summed over API processes, and what is done about a candidate.

    write      an API process puts its totals down
    live       the figures of a version, arm by arm
    settle     promotes or ends every candidate whose figures say so
    sweep      what earlier versions have seen goes, where nothing was decided by it

What figures prove, and what follows from them, is said in `models.figures`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy import and_, delete, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from models import deployments
from models.database import Database
from models.errors import Conflict, Missing
from models.figures import ARMS, Arm, Decision, Figures, Total, candidate, decide
from models.promotion import answering
from models.specs.deployments import Traffic
from models.tables import ArmCount, Deployment, DeploymentChange, utc_now

_ARM_OF: Mapping[str, Arm] = {
    "/student": "stable",
    "/canary/student": "canary",
    "/shadow/student": "shadow",
    "/fallback/to": "fallback",
}
_KEPT = timedelta(days=30)
_ROWS_AT_ONCE = 500


def write(session: Session, process: str, totals: Sequence[Total]) -> set[str]:
    """Put down what `process` has seen, over what it put down before; the deployments that are no longer there."""
    named = {total.deployment_id for total in totals}
    # Held until the rows are written: a deployment that goes takes its rows with it, and must not go in between.
    held = select(Deployment.id).where(Deployment.id.in_(named)).with_for_update(read=True, key_share=True)
    there = set(session.scalars(held))
    now = utc_now()
    rows = [
        {**asdict(total), "process": process, "updated_at": now} for total in totals if total.deployment_id in there
    ]
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    key = ("deployment_id", "version", "arm", "process")
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        insert = dialect.insert(ArmCount).values(rows[start : start + _ROWS_AT_ONCE])
        changed = {name: insert.excluded[name] for name in rows[0] if name not in key}
        session.execute(insert.on_conflict_do_update(index_elements=key, set_=changed))
    return named - there


@dataclass(frozen=True)
class Live:
    """A version of a deployment and what its arms have seen; an arm that has seen nothing is there too."""

    version: int
    since: datetime
    """When it became what it was in this version."""
    traffic: Traffic
    figures: tuple[Figures, ...]


def live(session: Session, deployment: Deployment, version: int | None = None) -> Live:
    """The figures of the current version, or of an earlier one. Raises `Missing` if there is no such version."""
    version = deployment.version if version is None else version
    change = session.scalar(
        select(DeploymentChange).where(
            DeploymentChange.deployment_id == deployment.id, DeploymentChange.version == version
        )
    )
    if change is None:
        raise Missing(f"deployment {deployment.name!r} has no version {version}")
    traffic = Traffic.model_validate(change.traffic)
    seen = session.scalars(
        select(ArmCount).where(ArmCount.deployment_id == deployment.id, ArmCount.version == version)
    ).all()
    students = {_ARM_OF[pointer]: named for pointer, named in answering(change.student_id, traffic).items()}
    students |= {_arm(row.arm): row.student_id for row in seen}
    figures = (_summed(arm, students[arm], [row for row in seen if row.arm == arm]) for arm in ARMS if arm in students)
    return Live(version, change.at, traffic, tuple(figures))


def _arm(name: str) -> Arm:
    return next(arm for arm in ARMS if arm == name)


def _summed(arm: Arm, student_id: str, rows: Sequence[ArmCount]) -> Figures:
    buckets = [sum(calls) for calls in zip(*(row.latency for row in rows), strict=True)]
    return Figures(
        arm=arm,
        student_id=student_id,
        calls=sum(row.calls for row in rows),
        inputs=sum(row.inputs for row in rows),
        errors=sum(row.errors for row in rows),
        compared=sum(row.compared for row in rows),
        agreed=sum(row.agreed for row in rows),
        latency=buckets or Figures.latency,
    )


class Settled(NamedTuple):
    """What became of a deployment's candidate."""

    deployment: str
    student_id: str
    decision: Decision


def settle(database: Database, healthy: Callable[[str], bool]) -> list[Settled]:
    """Promote or end every candidate whose figures say so; those that this call promoted or ended.

    Any process may do it, at any time: of several that come to one end at once the first changes the deployment, and
    the others find another version than the one that they decided about. A student that is not `healthy` here is not
    promoted.
    """
    with database.reading() as session:
        traffic = session.execute(select(Deployment.id, Deployment.traffic))
        asking = [id_ for id_, wanted in traffic if wanted.get("auto") is not None and _is_readable(wanted)]
    settled = [_settle(database, id_, healthy) for id_ in asking]
    return [one for one in settled if one is not None]


def _is_readable(traffic: dict[str, Any]) -> bool:
    """Whether this version can read it: one that it cannot must not keep the others from being decided about."""
    try:
        Traffic.model_validate(traffic)
    except ValidationError:
        return False
    return True


def _settle(database: Database, deployment_id: str, healthy: Callable[[str], bool]) -> Settled | None:
    with database.reading() as session:
        row = session.get(Deployment, deployment_id)
        now = None if row is None else live(session, row)
    one = None if now is None else candidate(now.figures)
    if row is None or now is None or now.traffic.auto is None or one is None:
        return None
    decision = decide(now.traffic.auto, now.figures)
    if decision.verdict == "wait" or (decision.verdict == "promote" and not healthy(one.student_id)):
        return None
    try:
        with database.writing() as session:
            found = session.get(Deployment, deployment_id, with_for_update=True)
            if found is None:
                return None
            move = deployments.promote_candidate if decision.verdict == "promote" else deployments.abort_candidate
            move(session, found, expected_version=now.version, reason=decision.reason)
    except Conflict:
        return None
    return Settled(row.name, one.student_id, decision)


def ended_by_auto(session: Session, deployment: Deployment, version: int) -> Decision | None:
    """The decision that ended a version; None if it was not `auto` that did."""
    after = select(DeploymentChange).where(
        DeploymentChange.deployment_id == deployment.id, DeploymentChange.version == version + 1
    )
    change = session.scalar(after)
    if change is None or change.by != deployments.AUTO:
        return None
    return Decision("promote" if change.verb == "promote" else "abort", change.reason)


def sweep(database: Database) -> None:
    """Forget what earlier versions have seen after 30 days, except where there was a candidate: its history shows why.

    It looks before it takes the write lock, so that an idle service only reads.
    """
    beside = aliased(ArmCount)
    decided = exists().where(
        beside.deployment_id == ArmCount.deployment_id,
        beside.version == ArmCount.version,
        beside.arm.in_(("canary", "shadow")),
    )
    current = select(Deployment.version).where(Deployment.id == ArmCount.deployment_id).scalar_subquery()
    old = and_(ArmCount.updated_at < utc_now() - _KEPT, ArmCount.version < current, ~decided)
    with database.reading() as session:
        any_old = session.scalar(select(ArmCount.process).where(old).limit(1)) is not None
    if any_old:
        with database.writing() as session:
            session.execute(delete(ArmCount).where(old), execution_options={"synchronize_session": False})
