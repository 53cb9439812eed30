"""Answers. Async, and without a session: what a deployment points at is in memory.

The body is read here and not by the framework, which costs more than a small student takes for its answer.
"""

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.background import BackgroundTask

from app import views
from app.dependencies import json_of
from app.security import Caller, Principal, needs
from app.serving.answering import Answering, Call
from app.serving.batching import CallerLeft, Timing
from app.serving.recorder import Recorder
from app.serving.shadowing import Copy, Shadows
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


_SCHEMA = Body.model_json_schema(ref_template="{model}")
_CONTENT = {"application/json": {"schema": _whole(_SCHEMA, _SCHEMA["$defs"])}}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}


@router.post("/predict/{deployment}", openapi_extra={**needs("predict"), **_BODY}, response_model=Answers)
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
    return await _answer(request, who, deployment, sticky)


@router.post("/predict", openapi_extra={**needs("predict"), **_BODY}, response_model=Answers)
async def predict_default(request: Request, who: Caller, sticky: Sticky = None) -> Response:
    """The same, of the deployment named `default`."""
    return await _answer(request, who, DEFAULT, sticky)


async def _answer(request: Request, who: Principal, name: str, sticky: str | None) -> Response:
    state = request.app.state
    answering: Answering = state.answering
    began = time.perf_counter()
    known = False
    outcome = "failed"
    try:
        inputs, single, parameters = read(await request.body(), state.settings)
        pointer = await answering.pointer(who.owner, name)
        known = True
        served = await answering.answer(pointer, Call(inputs, single, parameters, sticky, request.is_disconnected))
    except CallerLeft:
        outcome = "caller_left"
        return Response(status_code=499)
    except LimbeckError as error:
        outcome = error.code
        raise
    else:
        outcome = "ok"
        alone = single and served.student.runtime.kind in {"token-classification", "question-answering"}
        found = served.answers[0] if alone else served.answers
        body = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        headers = {
            "X-Limbeck-Student": served.student.student_id,
            "X-Limbeck-Arm": served.arm,
            "Server-Timing": _timing(served.timing),
        }
        if served.answered_by is not None:
            headers["X-Limbeck-Answered-By"] = served.answered_by
        if pointer.traffic.capture is not None:
            recorder: Recorder = state.recorder
            kept = recorder.keep(pointer, served.arm, served.student.student_id, inputs, served.answers)
            if kept is not None:
                headers["X-Limbeck-Prediction"] = kept
        # It runs when the answer has left.
        after = None if served.copy is None else BackgroundTask(_offer, state.shadows, served.copy)
        return Response(body, media_type="application/json", headers=headers, background=after)
    finally:
        # A name that does not exist is no label: anybody could make up any number of them.
        state.metrics.predicted(name if known else "", outcome, time.perf_counter() - began)


async def _offer(shadows: Shadows, copy: Copy) -> None:
    shadows.offer(copy)


def read(body: bytes, settings: Settings) -> tuple[list[Input], bool, Parameters]:
    """The inputs, whether they are one alone and no list, and the parameters. Raises `Invalid` with every problem."""
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
    return inputs, not isinstance(document["inputs"], list), parameters


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
            # Almost every text is plain; a lone surrogate is a string in Python and nowhere else.
            try:
                given.encode()
            except UnicodeEncodeError:
                return "", [Problem(pointer, "is not valid Unicode", "invalid")]
            return given, _too_long(pointer, given, limit)
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
                if text is not None
                for problem in _too_long(f"{pointer}/{name}", text, limit)
            ]
            return _plain(found), problems
        case _:
            return "", [Problem(pointer, "is neither a text nor an object with one", "invalid")]


def _plain(found: Text | Question) -> Input:
    if isinstance(found, Question):
        return reading.Question(found.question, found.context)
    return found.text if found.text_pair is None else reading.Pair(found.text, found.text_pair)


def _too_long(pointer: str, text: str, limit: int) -> list[Problem]:
    if len(text) <= limit:
        return []
    return [Problem(pointer, f"has {len(text)} characters; an input takes {limit}", "text_too_long")]


def _timing(timing: Timing) -> str:
    """Milliseconds, as the header's grammar has them."""
    parts: dict[str, float] = {"tokenize": timing.tokenize, "queue": timing.queue, "infer": timing.infer}
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts.items())
