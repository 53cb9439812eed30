"""Answers. Async, and without a session: what a deployment points at is in memory.

The body is read here and not by the framework, which costs more than a small student takes for its answer.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.background import BackgroundTask

from app import views
from app.dependencies import json_of
from app.security import Caller, Principal, needs
from app.serving.answering import Answering, Call, Served
from app.serving.batching import CallerLeft, Timing
from app.serving.recorder import Recorder
from app.serving.shadowing import Copy, Shadows
from app.serving.shelf import Pointer
from models import inputs as reading
from models.answers import Parameters
from models.errors import Invalid, LimbeckError, Problem
from models.inputs import Input
from models.settings import Settings
from models.specs import problems as problems_of

router = APIRouter(tags=["predict"])

DEFAULT = "default"

Sticky = Annotated[
    str | None,
    Header(
        alias="x-limbeck-sticky",
        max_length=200,
        description="whom the call is for, such as a user's id: calls with the same one go to the same arm of a canary",
    ),
]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Object):
    text: str
    text_pair: str | None = None


class Question(_Object):
    question: str
    context: str


class Body(_Object):
    """A body of /predict. What a deployment's student takes is that of its task."""

    inputs: str | Text | Question | list[str] | list[Text] | list[Question] = Field(
        description="a text, a pair of texts, a question with its context, or a list of one of these"
    )
    parameters: Parameters | None = None


Answers = (
    list[list[views.Label]]
    | list[views.Entity | views.Token]
    | list[list[views.Entity | views.Token]]
    | views.Span
    | list[views.Span]
    | list[list[views.Span]]
)


def _whole(schema: Any, parts: Mapping[str, Any]) -> Any:
    """A JSON schema with `parts` in the places of the references to them: what is read by hand has no components."""
    match schema:
        case {"$ref": str(name)}:
            return _whole(parts[name], parts)
        case dict():
            return {key: _whole(value, parts) for key, value in schema.items() if key != "$defs"}
        case list():
            return [_whole(value, parts) for value in schema]
        case _:
            return schema


def taking(body: type[BaseModel]) -> dict[str, Any]:
    """Of a route that reads its body by itself, what it takes, for its `openapi_extra`."""
    schema = body.model_json_schema(ref_template="{model}")
    content = {"application/json": {"schema": _whole(schema, schema.get("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


_EXTRA = {**needs("predict"), **taking(Body)}


@router.post("/predict/{deployment}", openapi_extra=_EXTRA, response_model=Answers)
async def predict(
    deployment: Annotated[str, Path(max_length=64)], request: Request, who: Caller, sticky: Sticky = None
) -> Response:
    """The answers of a deployment's student, as its task has them.

    Of texts the labels, best first: a list for each text in a list, also for one string. Of a text whose words are
    asked its entities, of a question an answer (with `top_k` several): one for one input, a list for a list.

    Headers say who answered: `X-Limbeck-Student` the student, `X-Limbeck-Arm` whether it is the `stable` one or the
    `canary`. Where the deployment has a fallback, `X-Limbeck-Answered-By` is `student` if that student gave all the
    answers, `mixed` if the fallback gave some, and the fallback's name if it gave all: `teacher`, or the id of another
    student. `X-Limbeck-Prediction` is there if the call was kept, and names it.
    """
    return await answer(request, who, deployment, sticky, read)


@router.post("/predict", openapi_extra=_EXTRA, response_model=Answers)
async def predict_default(request: Request, who: Caller, sticky: Sticky = None) -> Response:
    """The same, of the deployment named `default`."""
    return await answer(request, who, DEFAULT, sticky, read)


# --- one call, whichever way it is spoken -----------------------------------------------------------------------------


class Reply(NamedTuple):
    """What the caller gets, before it is known how it came about."""

    body: str | bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}


class Asked(NamedTuple):
    """A body that was read: what is asked, of whom exactly, and how the answer is to be written."""

    inputs: list[Input]
    single: bool
    """They came as one, and not as a list."""
    parameters: Parameters
    write: Callable[[Pointer, Served, str | None], Reply]
    """Of a deployment's answer, which the third names if it was kept."""
    whom: Callable[[Pointer], Pointer] = lambda pointer: pointer
    """What of a deployment is asked. May raise `Missing`."""


async def answer(
    request: Request, who: Principal, name: str, sticky: str | None, read: Callable[[bytes, Settings], Asked]
) -> Response:
    """A call of the deployment `name` from its body to its answer, counted and, if so chosen, kept.

    The headers say who answered, whatever `read` makes of the body and of the answer.
    """
    state = request.app.state
    answering: Answering = state.answering
    began = time.perf_counter()
    known = False
    outcome = "failed"
    try:
        asked = read(await request.body(), state.settings)
        pointer = await answering.pointer(who.owner, name)
        known = True
        pointer = asked.whom(pointer)
        call = Call(asked.inputs, asked.single, asked.parameters, sticky, request.is_disconnected)
        served = await answering.answer(pointer, call)
        headers = {
            "X-Limbeck-Student": served.student.student_id,
            "X-Limbeck-Arm": served.arm,
            "Server-Timing": _timing(served.timing),
        }
        if served.answered_by is not None:
            headers["X-Limbeck-Answered-By"] = served.answered_by
        kept = None
        if pointer.traffic.capture is not None:
            recorder: Recorder = state.recorder
            kept = recorder.keep(pointer, served.arm, served.student.student_id, asked.inputs, served.answers)
            if kept is not None:
                headers["X-Limbeck-Prediction"] = kept
        reply = asked.write(pointer, served, kept)
        outcome = "ok"
        state.metrics.answered(name, served.arm, len(asked.inputs))
        # It runs when the answer has left.
        after = None if served.copy is None else BackgroundTask(_offer, state.shadows, served.copy)
        headers |= reply.headers
        return Response(reply.body, media_type=reply.media_type, headers=headers, background=after)
    except CallerLeft:
        outcome = "caller_left"
        return Response(status_code=499)
    except LimbeckError as error:
        outcome = error.code
        raise
    finally:
        # A name that does not exist is no label: anybody could make up any number of them.
        state.metrics.predicted(name if known else "", outcome, time.perf_counter() - began)


async def _offer(shadows: Shadows, copy: Copy) -> None:
    shadows.offer(copy)


# --- the way of /predict ----------------------------------------------------------------------------------------------


def read(body: bytes, settings: Settings) -> Asked:
    """A body of /predict. Raises `Invalid` with every problem."""
    document = json_of(body)
    if not isinstance(document, dict):
        raise Invalid.of([Problem("", 'is not an object such as {"inputs": "a text"}', "invalid")])
    found = [
        Problem(
            "/" + name[:200].replace("~", "~0").replace("/", "~1"), "is not a field of this object", "unknown_field"
        )
        for name in document
        if name not in Body.model_fields
    ]
    inputs: list[Input] = []
    if "inputs" in document:
        inputs, wrong = _inputs(document["inputs"], settings)
        found += wrong
    else:
        found.append(Problem("/inputs", "is required", "missing"))
    given = document.get("parameters")
    parameters = Parameters()
    if given is not None and not isinstance(given, dict):
        found.append(Problem("/parameters", "is not an object", "invalid"))
    elif given:
        try:
            parameters = Parameters.parse(given)
        except Invalid as error:
            found += error.problems
    if found:
        raise Invalid.of(found)
    single = not isinstance(document["inputs"], list)
    return Asked(inputs, single, parameters, _write_one if single else _write)


def _write(_: Pointer, served: Served, __: str | None) -> Reply:
    return Reply(_json(served.answers))


def _write_one(_: Pointer, served: Served, __: str | None) -> Reply:
    alone = served.student.runtime.kind in {"token-classification", "question-answering"}
    return Reply(_json(served.answers[0] if alone else served.answers))


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _inputs(given: object, settings: Settings) -> tuple[list[Input], list[Problem]]:
    if not isinstance(given, list):
        item, wrong = _input("/inputs", given, settings.max_text_chars)
        return [item], wrong
    if not given:
        return [], [Problem("/inputs", "is empty", "empty_inputs")]
    if len(given) > settings.max_predict_inputs:
        message = f"has {len(given)} inputs; one call takes {settings.max_predict_inputs}"
        return [], [Problem("/inputs", message, "too_many_inputs")]
    inputs: list[Input] = []
    problems: list[Problem] = []
    for index, one in enumerate(given):
        item, wrong = _input(f"/inputs/{index}", one, settings.max_text_chars)
        inputs.append(item)
        problems += wrong
        if len(problems) >= 20:
            break
    if len({isinstance(one, dict) for one in given}) > 1 or (not problems and len({type(one) for one in inputs}) > 1):
        message = "mixes texts, pairs, questions or other objects; send a list of one kind"
        return [], [Problem("/inputs", message, "invalid")]
    return inputs, problems


def _input(pointer: str, given: object, limit: int) -> tuple[Input, list[Problem]]:
    match given:
        case str():
            wrong = unreadable(pointer, given, limit)
            return ("", [wrong]) if wrong is not None else (given, [])
        case dict():
            kind = Question if not given.keys().isdisjoint(Question.model_fields) else Text
            try:
                found = kind.model_validate(given)
            except ValidationError as error:
                return "", [
                    Problem(pointer + problem.pointer, problem.message, problem.code)
                    for problem in problems_of(error, given)
                ]
            problems = [
                problem
                for name, text in found
                if text is not None and (problem := unreadable(f"{pointer}/{name}", text, limit)) is not None
            ]
            return _plain(found), problems
        case _:
            return "", [Problem(pointer, "is neither a text nor an object with one", "invalid")]


def _plain(found: Text | Question) -> Input:
    if isinstance(found, Question):
        return reading.Question(found.question, found.context)
    return found.text if found.text_pair is None else reading.Pair(found.text, found.text_pair)


def unreadable(pointer: str, text: str, limit: int) -> Problem | None:
    """What is wrong with a text, if anything is; `limit` is the number of characters that an input takes."""
    # Almost every text is plain; a lone surrogate is a string in Python and nowhere else.
    try:
        text.encode()
    except UnicodeEncodeError:
        return Problem(pointer, "is not valid Unicode", "invalid")
    if len(text) > limit:
        return Problem(pointer, f"has {len(text)} characters; an input takes {limit}", "text_too_long")
    return None


def _timing(timing: Timing) -> str:
    """Milliseconds, as the header's grammar has them."""
    parts: dict[str, float] = {"tokenize": timing.tokenize, "queue": timing.queue, "infer": timing.infer}
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts.items())
