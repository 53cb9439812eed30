"""Where production calls arrive: the pointer, its candidates, live figures, history, and moving it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard.pages import Api, ApiHere, Json, PageRoute, path_of, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

_CALLERS = {
    "curl": "curl -H 'Authorization: Bearer lk_…' -H 'Content-Type: application/json' \\\n"
    "  -d '{body}' {base}predict/{name}",
    "Python": 'from limbeck import Client\n\nwith Client("{base}", "lk_…") as client:\n'
    '    answers = client.predict("{name}", {inputs})',
    "Hugging Face": "from huggingface_hub import InferenceClient\n\n"
    'client = InferenceClient(model="{base}predict/{name}", token="lk_…")\nclient.{verb}',
}
_EXAMPLES: dict[str, tuple[str, str]] = {
    "text-classification": ('"what a lovely day"', 'text_classification("what a lovely day")'),
    "text-regression": (
        '{"text": "a man plays", "text_pair": "somebody plays"}',
        'post(json={"inputs": {"text": "a man plays", "text_pair": "somebody plays"}})',
    ),
    "token-classification": ('"Ada met Charles in London"', 'token_classification("Ada met Charles in London")'),
    "question-answering": (
        '{"question": "Who met Charles?", "context": "Ada met Charles in London."}',
        'question_answering(question="Who met Charles?", context="Ada met Charles in London.")',
    ),
}
"""By task: an input as JSON, and the call of Hugging Face's client for it."""


@pages.get("/ui/deployments", openapi_extra=needs("read"))
async def show_deployments(request: Request, api: ApiHere, after: str | None = None) -> HTMLResponse:
    page = await api.get("/deployments", after=after, limit=50)
    rows = await asyncio.gather(*(summary(api, deployment) for deployment in page["data"]))
    return render(request, "deployments.html", page=page, rows=rows)


@pages.get("/ui/deployments/{name}", openapi_extra=needs("read"))
async def show_deployment(request: Request, api: ApiHere, name: str) -> HTMLResponse:
    address = f"/deployments/{path_of(name)}"
    deployment = await api.get(address)
    traffic, history, students, student, captures = await asyncio.gather(
        api.get(f"{address}/traffic"),
        api.get(f"{address}/history"),
        api.get("/students", limit=100),
        api.find(f"/students/{path_of(deployment['student'])}"),
        api.find(f"{address}/captures", limit=10),
    )
    return render(
        request,
        "deployment.html",
        captures=captures,
        deployment=deployment,
        student=student,
        traffic=traffic,
        history=history["data"],
        names=_names(students["data"]),
        students=_candidates(students["data"], student),
        callers=_callers(request, deployment["name"], student),
        example=_EXAMPLES.get((student or {}).get("task") or "", ("", ""))[0],
    )


async def summary(api: Api, deployment: Json) -> Json:
    """What the list shows of one: with its student, and what was counted of it."""
    student, traffic = await asyncio.gather(
        api.find(f"/students/{path_of(deployment['student'])}"),
        api.find(f"/deployments/{path_of(deployment['name'])}/traffic"),
    )
    arms = [] if traffic is None else traffic["arms"]
    stable = next((arm for arm in arms if arm["arm"] == "stable"), None)
    return {"deployment": deployment, "student": student, "stable": stable}


def _names(students: list[Json]) -> dict[str, str]:
    return {student["id"]: student["name"] or student["id"] for student in students}


def _candidates(students: list[Json], serving: Json | None) -> list[Json]:
    """Students of the same task: only those can take the place of the one that serves."""
    if serving is None:
        return students
    return [student for student in students if student["task"] == serving["task"]]


def _callers(request: Request, name: str, student: Json | None) -> dict[str, str]:
    """The call of this deployment in several languages, to copy."""
    inputs, verb = _EXAMPLES.get((student or {}).get("task") or "", _EXAMPLES["text-classification"])
    values: dict[str, Any] = {"base": str(request.base_url), "name": name, "inputs": inputs, "verb": verb}
    values["body"] = f'{{"inputs": {inputs}}}'
    return {language: _filled(text, values) for language, text in _CALLERS.items()}


def _filled(text: str, values: dict[str, Any]) -> str:
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text
