"""A student beside its teacher: what it is worth, where it is weak, what it was made of, and trying it."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.dashboard.pages import ApiHere, Json, PageRoute, Refused, path_of, render
from app.security import needs

pages = APIRouter(include_in_schema=False, route_class=PageRoute)

ARMS = ("teacher", "distilled", "control", "untrained")
METRICS = {
    "accuracy": "accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "f1": "F1",
    "exact_match": "exact match",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "matthews": "Matthews",
}
_BESIDE = tuple(METRICS)
_CARD = "README.md"
_LONGEST_CARD = 200_000


@pages.get("/ui/students", openapi_extra=needs("read"))
async def show_students(request: Request, api: ApiHere, after: str | None = None) -> HTMLResponse:
    page = await api.get("/students", after=after, limit=25)
    reports = await asyncio.gather(*(api.find(f"/students/{path_of(one['id'])}/report") for one in page["data"]))
    rows = [
        {"student": one, "figures": figures(report or {})} for one, report in zip(page["data"], reports, strict=True)
    ]
    return render(request, "students.html", page=page, rows=rows)


@pages.get("/ui/students/{student_id}", openapi_extra=needs("read"))
async def show_student(request: Request, api: ApiHere, student_id: str) -> HTMLResponse:
    address = f"/students/{path_of(student_id)}"
    student = await api.get(address)
    report, files, job, deployments, manifest, card = await asyncio.gather(
        api.get(f"{address}/report"),
        api.get(f"{address}/files"),
        api.find(f"/jobs/{path_of(student['job_id'])}"),
        api.get("/deployments", limit=100),
        api.find(f"{address}/files/manifest.json"),
        _card(api, address),
    )
    return render(
        request,
        "student.html",
        student=student,
        report=report,
        figures=figures(report),
        arms=list(arms(report)),
        metrics=METRICS,
        quality=quality_chart(report),
        cascade=cascade_chart(report),
        files=files["data"],
        job=job,
        deployments=[one["name"] for one in deployments["data"]],
        manifest=manifest or {},
        card=card,
    )


async def _card(api: ApiHere, address: str) -> str:
    """The model card without the YAML before it, which is for the Hub."""
    try:
        text: str = await api.text(f"{address}/files/{_CARD}")
    except Refused:
        return ""
    if text.startswith("---"):
        text = text.partition("\n---")[2]
    return text[:_LONGEST_CARD].strip()


# --- from a report to what is shown -----------------------------------------------------------------------------------


def figures(report: Mapping[str, Any]) -> Json:
    """The few numbers that a list shows of a student. What its report lacks is None."""
    found = report.get("arms") or {}
    distilled, teacher = found.get("distilled") or {}, found.get("teacher") or {}
    comparisons = report.get("comparisons") or {}
    served = (distilled.get("precisions") or {}).get(distilled.get("served")) or {}
    return {
        "metric": METRICS.get(report.get("metric", ""), report.get("metric", "")),
        "score": distilled.get("score"),
        "teacher": teacher.get("score"),
        "drop": comparisons.get("drop"),
        "gain": comparisons.get("gain_over_control"),
        "parameters": distilled.get("parameters"),
        "smaller": _times(teacher.get("parameters"), distilled.get("parameters")),
        "bytes": served.get("bytes") or distilled.get("bytes"),
        "p50_ms": served.get("p50_ms"),
        "faster": _times(served_of(teacher).get("p50_ms"), served.get("p50_ms")),
        "served": distilled.get("served"),
    }


def arms(report: Mapping[str, Any]) -> Iterator[Json]:
    """Each arm with its name, what of it is served, and its interval: the rows of the card."""
    found = {name: (report.get("arms") or {}).get(name) for name in ARMS} | (report.get("others") or {})
    metric = str(report.get("metric", ""))
    for name, arm in found.items():
        if arm:
            beside = [key for key in _BESIDE if key != metric and isinstance(arm.get(key), float)]
            yield {
                "name": name,
                "interval": arm.get(f"{metric}_interval"),
                "beside": [(METRICS[key], arm[key]) for key in beside[:2]],
                "served": served_of(arm),
                **{key: value for key, value in arm.items() if key not in {"precisions", "served"}},
                "precision": arm.get("served"),
            }


def served_of(arm: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of the precision of an arm that is served."""
    found: Mapping[str, Any] = (arm.get("precisions") or {}).get(arm.get("served")) or {}
    return found


def quality_chart(report: Mapping[str, Any]) -> Json | None:
    """The arms' scores with their intervals, where the report has some."""
    rows = [arm for arm in arms(report) if isinstance(arm.get("score"), float)]
    if not rows:
        return None
    intervals = [row["interval"] or [row["score"], row["score"]] for row in rows]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [high - row["score"] for row, (_, high) in zip(rows, intervals, strict=True)],
        "arrayminus": [row["score"] - low for row, (low, _) in zip(rows, intervals, strict=True)],
    }
    metric = METRICS.get(str(report.get("metric")), str(report.get("metric")))
    series = [
        {
            "name": row["name"],
            "arm": row["name"],
            "x": [row["score"]],
            "y": [row["name"]],
            "mode": "markers",
            "trace": {
                "error_x": {**bars, "array": [bars["array"][at]], "arrayminus": [bars["arrayminus"][at]]},  # type: ignore[index]
            },
        }
        for at, row in enumerate(rows)
    ]
    layout = {"yaxis": {"autorange": "reversed", "automargin": True, "type": "category"}, "showlegend": False}
    return {
        "title": f"{metric} on the test rows, by arm",
        "x": metric,
        "height": 90 + 42 * len(rows),
        "hover": "closest",
        "series": series,
        "layout": layout,
    }


def cascade_chart(report: Mapping[str, Any]) -> Json | None:
    """What student and teacher reach together, by the share that the student answers; None without such a table."""
    rows = ((report.get("cascade") or {}).get("thresholds")) or []
    if not rows:
        return None
    x = [row["test"]["coverage"] for row in rows]
    return {
        "title": "Accuracy of student and teacher together, by the share that the student answers",
        "x": "share of the inputs that the student answers",
        "y": "accuracy of both together",
        "series": [
            {
                "name": "student, and its teacher where it is unsure",
                "arm": "distilled",
                "x": x,
                "y": [row["test"]["accuracy"] for row in rows],
                "text": [f"threshold {row['threshold']:.2f}" for row in rows],
                "mode": "lines+markers",
            }
        ],
    }


def _times(larger: float | None, smaller: float | None) -> float | None:
    return larger / smaller if larger and smaller else None
