"""Answers. Async, and without a session: what a deployment points at is in memory.

The body is read here and not by the framework, which costs more than a small student takes for its answer.
"""

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from app import views
from app.dependencies import json_of
from app.security import Caller, Principal, needs
from app.serving.batching import Answer, CallerLeft, Pool
from app.serving.shelf import Shelf
from models.errors import Invalid, LimbeckError, Problem
from models.runtime import Parameters
from models.settings import Settings
from models.specs import problems as problems_of

router = APIRouter(tags=["predict"])

DEFAULT = "default"


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str


class Question(BaseModel):
    """A body of /predict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: str | Text | list[str] | list[Text] = Field(description="a text, or a list of texts")
    parameters: Parameters | None = None


Labels = list[list[views.Label]]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Question.model_json_schema(ref_template="#/components/schemas/{model}")}
        },
    }
}


@router.post("/predict/{deployment}", openapi_extra={**needs("predict"), **_BODY}, response_model=Labels)
async def predict(deployment: Annotated[str, Path(max_length=64)], request: Request, who: Caller) -> Response:
    """For each input its labels, best first: always a list of lists, also for one string."""
    return await _answer(request, who, deployment)


@router.post("/predict", openapi_extra={**needs("predict"), **_BODY}, response_model=Labels)
async def predict_default(request: Request, who: Caller) -> Response:
    """The same, of the deployment named `default`."""
    return await _answer(request, who, DEFAULT)


async def _answer(request: Request, who: Principal, name: str) -> Response:
    state = request.app.state
    shelf: Shelf = state.shelf
    pool: Pool = state.pool
    began = time.perf_counter()
    known = False
    outcome = "failed"
    try:
        texts, parameters = read(await request.body(), state.settings)
        student = shelf.at_hand(who.owner, name)
        if student is None:
            student = await run_in_threadpool(shelf.fetch, who.owner, name)
        known = True
        answer = await pool.answer(student.runtime, texts, parameters, request.is_disconnected)
    except CallerLeft:
        outcome = "caller_left"
        return Response(status_code=499)
    except LimbeckError as error:
        outcome = error.code
        raise
    else:
        outcome = "ok"
        body = json.dumps(answer.labels, ensure_ascii=False, separators=(",", ":"))
        headers = {"X-Limbeck-Student": student.student_id, "Server-Timing": _timing(answer)}
        return Response(body, media_type="application/json", headers=headers)
    finally:
        # A name that does not exist is no label: anybody could make up any number of them.
        state.metrics.predicted(name if known else "", outcome, time.perf_counter() - began)


def read(body: bytes, settings: Settings) -> tuple[list[str], Parameters]:
    """The texts and the parameters of a body. Raises `Invalid` with every problem at once."""
    document = json_of(body)
    if not isinstance(document, dict):
        raise Invalid.of([Problem("", 'is not an object such as {"inputs": "a text"}', "invalid")])
    found = [
        Problem(
            "/" + name[:200].replace("~", "~0").replace("/", "~1"), "is not a field of this object", "unknown_field"
        )
        for name in document
        if name not in Question.model_fields
    ]
    texts: list[str] = []
    if "inputs" in document:
        texts, wrong = _texts(document["inputs"], settings)
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
    return texts, parameters


def _texts(inputs: object, settings: Settings) -> tuple[list[str], list[Problem]]:
    if isinstance(inputs, list):
        if not inputs:
            return [], [Problem("/inputs", "is empty", "empty_inputs")]
        if len(inputs) > settings.max_predict_inputs:
            message = f"has {len(inputs)} inputs; one call takes {settings.max_predict_inputs}"
            return [], [Problem("/inputs", message, "too_many_inputs")]
        kinds = {isinstance(item, dict) for item in inputs}
        if len(kinds) > 1:
            return [], [Problem("/inputs", "mixes texts and objects; send a list of one kind", "invalid")]
        placed: list[tuple[str, object]] = [(f"/inputs/{index}", item) for index, item in enumerate(inputs)]
    else:
        placed = [("/inputs", inputs)]
    texts: list[str] = []
    problems: list[Problem] = []
    for pointer, item in placed:
        text, wrong = _text(pointer, item)
        if not wrong and len(text) > settings.max_text_chars:
            message = f"has {len(text)} characters; an input takes {settings.max_text_chars}"
            wrong = [Problem(pointer, message, "text_too_long")]
        texts.append(text)
        problems += wrong
        if len(problems) >= 20:
            break
    return texts, problems


def _text(pointer: str, item: object) -> tuple[str, list[Problem]]:
    match item:
        case str():
            # Almost every text is plain; a lone surrogate is a string in Python and nowhere else.
            try:
                item.encode()
            except UnicodeEncodeError:
                return "", [Problem(pointer, "is not valid Unicode", "invalid")]
            return item, []
        case dict():
            later = [
                Problem(f"{pointer}/{name}", f"{name} is not available in this version", "not_available_yet")
                for name in ("text_pair", "question", "context")
                if item.get(name) is not None
            ]
            if later:
                return "", later
            try:
                return Text.model_validate({k: v for k, v in item.items() if k != "text_pair"}).text, []
            except ValidationError as error:
                return "", [
                    Problem(pointer + problem.pointer, problem.message, problem.code)
                    for problem in problems_of(error, item)
                ]
        case _:
            return "", [Problem(pointer, "is neither a text nor an object with one", "invalid")]


def _timing(answer: Answer) -> str:
    """Milliseconds, as the header's grammar has them."""
    parts: dict[str, Any] = {
        "tokenize": answer.timing.tokenize,
        "queue": answer.timing.queue,
        "infer": answer.timing.infer,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts.items())
