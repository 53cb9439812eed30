"""Trying a student before anything points at it: its answers beside its teacher's. It is not counted or captured."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from app import security, views
from app.dependencies import DatabaseHere
from app.routes.predict import Asked, Body, read, taking
from app.security import Caller, needs
from app.serving.answering import Answering, Call
from models.database import Database
from models.errors import Invalid, Problem
from models.specs.deployments import teacher_of
from models.tables import Student

router = APIRouter(tags=["students"])

MOST_INPUTS = 32
_NO_TEACHER = "no export of its teacher was published with this student"


class Tried(views.View):
    """What one network says to each input, and what it took."""

    answers: list[Any]
    """One for each input, in the shapes of /predict."""
    milliseconds: float
    """For all inputs together, here and now."""


class StudentAnswers(views.View):
    object: Literal["student.answers"] = "student.answers"
    student: Tried
    teacher: Tried | None
    teacher_reason: str | None
    """Why the teacher says nothing."""


@router.post("/students/{student_id}/predict", openapi_extra={**needs("predict"), **taking(Body)})
async def try_student(
    student_id: str,
    request: Request,
    database: DatabaseHere,
    who: Caller,
    teacher: Annotated[bool, Query(description="ask its teacher too")] = True,
) -> StudentAnswers:
    """The answers of a student, and of the teacher that was published with it. It need not be deployed.

    The body is that of /predict, with at most 32 inputs. For looking, not for production: what is asked here is in no
    figure, and a student that is not loaded has to be loaded first.
    """
    asked = read(await request.body(), request.app.state.settings)
    if len(asked.inputs) > MOST_INPUTS:
        message = f"has {len(asked.inputs)} inputs; here are at most {MOST_INPUTS}"
        raise Invalid.of([Problem("/inputs", message, "too_many_inputs")])
    has_teacher = await _look_up(database, student_id, who)
    by_student = await _ask(request, student_id, asked)
    by_teacher = await _ask(request, teacher_of(student_id), asked) if teacher and has_teacher else None
    reason = _NO_TEACHER if teacher and not has_teacher else None
    return StudentAnswers(student=by_student, teacher=by_teacher, teacher_reason=reason)


async def _ask(request: Request, name: str, asked: Asked) -> Tried:
    answering: Answering = request.app.state.answering
    call = Call(asked.inputs, asked.single, asked.parameters, None, request.is_disconnected)
    student = await answering.loaded(name, call)
    began = time.perf_counter()
    found = await answering.alone(student, call)
    return Tried(answers=found.answers, milliseconds=round((time.perf_counter() - began) * 1000, 3))


async def _look_up(database: Database, student_id: str, who: security.Principal) -> bool:
    """Whether the student has an exported teacher. Raises `Missing`."""

    def look() -> bool:
        with database.reading() as session:
            return security.find(session, Student, student_id, who).teacher_artifact is not None

    return await run_in_threadpool(look)
