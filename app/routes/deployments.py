"""Names that production calls, and where they point."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response, status
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import views
from app.dependencies import DatabaseHere, PageWanted, ReadSession, WriteSession, page_of
from app.security import Caller, needs, only_own
from app.serving.shelf import Pointer, Shelf
from models import deployments, promotion
from models.database import after_commit
from models.errors import Invalid, LimbeckError, Problem
from models.specs import DeploymentSpec, Traffic
from models.tables import Deployment, DeploymentChange

router = APIRouter(tags=["deployments"])

Name = Annotated[str, Path(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
IfMatch = Annotated[str | None, Header(max_length=200, description="the deployment's ETag")]


@router.put("/deployments/{name}", openapi_extra=needs("deploy"), responses={201: {"model": views.Deployment}})
def put_deployment(
    name: Name,
    wanted: DeploymentSpec,
    request: Request,
    response: Response,
    database: DatabaseHere,
    who: Caller,
    if_match: IfMatch = None,
    if_none_match: Annotated[str | None, Header(max_length=200, description="`*`: only if there is none yet")] = None,
) -> views.Deployment:
    """Say what a deployment should be. Its students must load and give the answers on record, and its gate hold.

    Everything is looked at before anything moves, and every problem is told at once. What is left out is not: a canary
    that was there ends. Of a gate, the one that is there stays.
    """
    shelf: Shelf = request.app.state.shelf
    with database.reading() as session:
        found = deployments.look_up(session, owner=who.owner, name=name)
        planned = promotion.plan(session, found, wanted, may_use=lambda row: who.is_admin or row.owner == who.owner)
    promotion.refuse([*planned.problems, *_unhealthy(shelf, planned.answering)])
    with database.writing() as session:
        row, created = deployments.put(
            session,
            owner=who.owner,
            name=name,
            wanted=wanted,
            by=who.key_id,
            expected_version=_version(if_match, session, who.owner, name),
            must_be_new=if_none_match is not None and if_none_match.strip() == "*",
        )
        _take_effect(session, shelf, row)
    response.status_code = status.HTTP_201_CREATED if created else status.HTTP_200_OK
    return _tagged(response, row)


@router.get("/deployments", openapi_extra=needs("read"))
def list_deployments(session: ReadSession, wanted: PageWanted, who: Caller) -> views.Page[views.Deployment]:
    """One's own, newest first; with `admin` everybody's."""
    rows, has_more = page_of(session, only_own(select(Deployment), Deployment.owner, who), Deployment.id, wanted)
    return views.Page(data=[_view(row) for row in rows], has_more=has_more)


@router.get("/deployments/{name}", openapi_extra=needs("read"))
def read_deployment(name: Name, session: ReadSession, response: Response, who: Caller) -> views.Deployment:
    """Where it points, and what else happens to a call. Its ETag is for `If-Match`."""
    return _tagged(response, deployments.find(session, owner=who.owner, name=name))


@router.get("/deployments/{name}/history", openapi_extra=needs("read"))
def read_history(name: Name, session: ReadSession, who: Caller) -> views.Page[views.DeploymentChange]:
    """Every change, newest first: what was done, by whom, why, and how things stood afterwards."""
    row = deployments.find(session, owner=who.owner, name=name)
    return views.Page(data=[_change(change) for change in deployments.history(session, row)])


@router.post("/deployments/{name}/rollback", openapi_extra=needs("deploy"))
def roll_back(
    name: Name, request: Request, response: Response, database: DatabaseHere, who: Caller, if_match: IfMatch = None
) -> views.Deployment:
    """Point back at the student before, with the gate, fallback and capture that it had. Two in a row go two back."""
    shelf: Shelf = request.app.state.shelf
    with database.reading() as session:
        student_id = deployments.before(session, deployments.find(session, owner=who.owner, name=name))
    promotion.refuse([*_unhealthy(shelf, {"": student_id})])
    with database.writing() as session:
        row = deployments.find(session, owner=who.owner, name=name, for_update=True)
        deployments.expect(row, _version(if_match, session, who.owner, name))
        row = deployments.rollback(session, row, student_id=student_id, by=who.key_id)
        _take_effect(session, shelf, row)
    return _tagged(response, row)


@router.delete("/deployments/{name}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("deploy"))
def delete_deployment(
    name: Name, request: Request, session: WriteSession, who: Caller, if_match: IfMatch = None
) -> None:
    """Calls of it are answered 404 from now on. Its students stay."""
    row = deployments.find(session, owner=who.owner, name=name, for_update=True)
    deployments.expect(row, _version(if_match, session, who.owner, name))
    session.delete(row)
    shelf: Shelf = request.app.state.shelf
    after_commit(session, shelf.refresh)


def _unhealthy(shelf: Shelf, answering: Mapping[str, str]) -> Iterator[Problem]:
    """Whoever of these students, by their pointers, does not load or does not give the answers on record."""
    for pointer, student_id in answering.items():
        try:
            shelf.load(student_id)
        except LimbeckError as error:
            yield Problem(pointer, f"this student cannot serve: {error.message}", promotion.UNHEALTHY)


def _take_effect(session: Session, shelf: Shelf, row: Deployment) -> None:
    traffic = Traffic.model_validate(row.traffic)
    pointer = Pointer(row.id, row.owner, row.name, row.student_id, row.version, traffic)
    after_commit(session, lambda: shelf.point(pointer))


def _version(if_match: str | None, session: Session, owner: str, name: str) -> int | None:
    """The version that `If-Match` asks for. `*` is whichever there is, and there must be one."""
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return deployments.find(session, owner=owner, name=name).version
    tag = re.fullmatch(r'(?:W/)?"?(\d{1,9})"?', if_match.strip())
    if tag is None:
        raise Invalid.of([Problem("/header/if-match", 'is not an ETag of a deployment, such as "3"', "invalid")])
    return int(tag[1])


def _tagged(response: Response, row: Deployment) -> views.Deployment:
    response.headers["ETag"] = f'"{row.version}"'
    return _view(row)


def _view(row: Deployment) -> views.Deployment:
    fields: dict[str, Any] = {
        name: getattr(row, name) for name in ("id", "name", "gate", "version", "created_at", "updated_at")
    }
    parts = {name: row.traffic.get(name) for name in Traffic.model_fields}
    return views.Deployment(student=row.student_id, **fields, **parts)


def _change(change: DeploymentChange) -> views.DeploymentChange:
    return views.DeploymentChange(
        version=change.version,
        student=change.student_id,
        previous_student=change.previous_student_id,
        verb=change.verb,
        by=change.by,
        reason=change.reason,
        gate=change.gate,
        traffic=change.traffic,
        at=change.at,
    )
