"""`limbeck deployments …`"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from limbeck.cli.completion import ids
from limbeck.cli.documents import read_document
from limbeck.cli.output import (
    After,
    AsJson,
    Limit,
    console,
    service,
    show_fields,
    show_json,
    show_table,
    size,
    text,
)
from limbeck.errors import LimbeckError
from limbeck.objects import Deployment, DeploymentTraffic, TrafficArm

deployments = typer.Typer(no_args_is_help=True, help="Names that production calls.")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A deployment's name.", show_default=False, autocompletion=ids("deployments")),
]
IfMatch = Annotated[int | None, typer.Option("--if-version", help="Only if it is at this version.", show_default=False)]
Pairs = list[str] | None
_LISTS = frozenset({"redact"})


@deployments.command("put")
def put(
    name: Name,
    student: Annotated[
        str | None,
        typer.Argument(metavar="STUDENT", help="Who serves, st_…", show_default=False, autocompletion=ids("students")),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="All of what it should be, YAML or JSON; - reads it.", show_default=False),
    ] = None,
    canary: Annotated[
        str | None, typer.Option(metavar="ID", help="Another student answers a share.", show_default=False)
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="That share, such as 0.1.", show_default=False)] = None,
    shadow: Annotated[
        str | None, typer.Option(metavar="ID", help="Another student is asked too, and compared.", show_default=False)
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(metavar="teacher|ID", help="Who answers when the student is not sure.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The score from which the student is sure.", show_default=False)
    ] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="Or the accuracy of both together.", show_default=False)
    ] = None,
    target_agreement: Annotated[
        float | None, typer.Option(help="Or their agreement with the teacher.", show_default=False)
    ] = None,
    capture: Annotated[
        Pairs, typer.Option(metavar="KEY=VALUE", help="Keep calls: sample=0.1, days=7, …", show_default=False)
    ] = None,
    gate: Annotated[
        Pairs, typer.Option(metavar="KEY=VALUE", help="What must hold: max_drop=0.04, …", show_default=False)
    ] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why it serves though its gate fails.", show_default=False)
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="The canary or shadow decides for itself.")] = False,
    if_version: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Say what a deployment should be. What is not given ends; only a gate stays."""
    with service() as client:
        wanted = {
            "student": student,
            "canary": _given(student=canary, fraction=fraction),
            "shadow": _given(student=shadow),
            "fallback": _given(
                to=fallback,
                threshold=threshold,
                target_accuracy=target_accuracy,
                target_agreement=target_agreement,
            ),
            "auto": {} if auto else None,
            "capture": _pairs("capture", capture),
            "gate": _pairs("gate", gate),
            "override": override,
        }
        document = {part: value for part, value in wanted.items() if value is not None}
        if (file is None) == (not document):
            raise LimbeckError(
                "give a student and options, or a file with all of it",
                hint=f"limbeck deployments put {name} st_… --canary st_… --fraction 0.1",
            )
        if file is not None:
            document = read_document(file, 'a deployment is an object such as {"student": "st_…"}').value
        _show(client.deployments.apply(name, document, if_match=if_version), as_json)


@deployments.command("show")
def show_deployment(name: Name, as_json: AsJson = False) -> None:
    """Show where it points."""
    with service() as client:
        _show(client.deployments.get(name), as_json)


@deployments.command("list")
def list_deployments(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List deployments, newest first."""
    with service() as client:
        found = client.deployments.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.name, item.student, item.version, item.updated_at) for item in found]
        show_table(("name", "student", "version", "moved"), rows, empty="no deployments", more=found.has_more)


@deployments.command("history")
def history(name: Name, as_json: AsJson = False) -> None:
    """List every move, newest first."""
    with service() as client:
        found = client.deployments.history(name)
        if as_json:
            show_json([change.raw for change in found])
            return
        rows = [(item.version, item.verb, item.student, item.by, item.at, item.reason) for item in found]
        show_table(("version", "verb", "student", "by", "at", "reason"), rows)


@deployments.command("rollback")
def rollback(name: Name, if_version: IfMatch = None, as_json: AsJson = False) -> None:
    """Point back at the student before."""
    with service() as client:
        _show(client.deployments.rollback(name, if_match=if_version), as_json)


@deployments.command("delete")
def delete_deployment(name: Name, if_version: IfMatch = None, as_json: AsJson = False) -> None:
    """Delete a deployment. Its student stays."""
    with service() as client:
        client.deployments.delete(name, if_match=if_version)
        show_json({"name": name, "deleted": True}) if as_json else console.print(f"deleted {name}")


# --- what happens to its calls ----------------------------------------------------------------------------------------


@deployments.command("traffic")
def traffic(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="An earlier version.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each arm has seen since the last change."""
    with service() as client:
        found = client.deployments.traffic(name, version=version)
        if as_json:
            show_json(found.raw)
            return
        show_traffic(found)


@deployments.command("captures")
def captures(
    name: Name,
    labelled: Annotated[
        bool | None,
        typer.Option("--labelled/--unlabelled", help="Only those with a true answer, or without.", show_default=False),
    ] = None,
    limit: Limit = 20,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List the inputs and answers that were kept, newest first."""
    with service() as client:
        found = client.deployments.captures(name, labelled=labelled, limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.id, item.arm, item.input, item.answer, item.label, item.created_at) for item in found]
        headings = ("id", "arm", "input", "answer", "label", "at")
        show_table(headings, rows, empty="nothing was captured", more=found.has_more)


@deployments.command("delete-captures")
def delete_captures(name: Name, as_json: AsJson = False) -> None:
    """Forget all inputs and answers that were kept."""
    with service() as client:
        client.deployments.delete_captures(name)
        show_json({"name": name, "captures_deleted": True}) if as_json else console.print(f"forgot what {name} kept")


@deployments.command("dataset")
def dataset(
    deployment: Name,
    name: Annotated[str | None, typer.Option(help="The dataset's name.", show_default=False)] = None,
    labels: Annotated[
        Literal["feedback", "answers", "both"] | None,
        typer.Option(help="What is in the label's column; default: feedback.", show_default=False),
    ] = None,
    only_unsure_below: Annotated[
        float | None, typer.Option(help="Only rows with a score below this.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of what was captured, for a job to learn from."""
    with service() as client:
        found = client.deployments.dataset_of_captures(
            deployment, name=name, labels=labels, only_unsure_below=only_unsure_below
        )
        if as_json:
            show_json(found.raw)
            return
        console.print(f"{found.id}  {escape(found.name)}  [dim]{found.rows:,} rows, {size(found.bytes)}[/]")


def show_traffic(found: DeploymentTraffic) -> None:
    console.print(f"{found.name}  [dim]version {found.version}, since {text(found.since)}[/]")
    headings = ("arm", "student", "calls", "inputs", "errors", "agreement", "at least", "p50", "p95", "p99")
    show_table(headings, [_arm(arm) for arm in found.arms], empty="no calls")
    if found.decision is not None:
        console.print(f"[bold]{text(found.decision.get('verdict'))}[/]: {text(found.decision.get('reason'))}")


def _given(**parts: Any) -> dict[str, Any] | None:
    """Those that are not None; None where all are."""
    return {part: value for part, value in parts.items() if value is not None} or None


def _pairs(option: str, pairs: Sequence[str] | None) -> dict[str, Any] | None:
    """`KEY=VALUE` pairs as an object. A value that is JSON is taken as such, and every other one as a text; what stands
    at `redact` are patterns, one a pair."""
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise LimbeckError(f"--{option} takes KEY=VALUE, and not {pair!r}")
        try:
            given = json.loads(value)
        except ValueError:
            given = value
        if key in _LISTS and not isinstance(given, list):
            given = [*found.get(key, []), value]
        found[key] = given
    return found


def _arm(arm: TrafficArm) -> tuple[object, ...]:
    rate = "" if not arm.errors else f" ({_percent(arm.error_rate)})"
    return (
        arm.arm,
        arm.student,
        f"{arm.calls:,}",
        f"{arm.inputs:,}",
        f"{arm.errors:,}{rate}",
        f"{_percent(arm.agreement)} of {arm.compared:,}" if arm.compared else "",
        _percent(arm.agreement_lower_bound),
        *(_ms(value) for value in (arm.p50_ms, arm.p95_ms, arm.p99_ms)),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"


def _show(found: Deployment, as_json: bool) -> None:
    if as_json:
        show_json(found.raw)
        return
    console.print(f"{found.name} → {found.student}  [dim]version {found.version}[/]")
    parts = ("canary", "shadow", "fallback", "auto", "capture", "gate")
    show_fields({part: getattr(found, part) for part in parts})
