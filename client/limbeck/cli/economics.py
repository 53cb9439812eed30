"""`limbeck economics`: what a student saves against its teacher's API."""

from typing import Annotated

import typer

from limbeck.cli.output import AsJson, console, service, show_fields, show_json, show_table, text
from limbeck.cli.students import Id
from limbeck.objects import Economics


def economics(
    student: Id,
    calls_per_month: Annotated[float, typer.Option(help="How often it is asked.", show_default=False)],
    host_cost_per_month: Annotated[float, typer.Option(help="Of one host that serves it.", show_default=False)],
    price_per_call: Annotated[
        float | None, typer.Option(help="Of the teacher's API; or a price of tokens.", show_default=False)
    ] = None,
    price_per_1k_tokens: Annotated[float | None, typer.Option(help="Of the teacher's API.", show_default=False)] = None,
    tokens_per_call: Annotated[
        float | None, typer.Option(help="Prompt, text and answer together.", show_default=False)
    ] = None,
    training_cost: Annotated[
        float | None, typer.Option(help="Default: what the host costs for the job's time.", show_default=False)
    ] = None,
    fallback_coverage: Annotated[
        float | None,
        typer.Option(help="The share of the calls that the student answers itself; default all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a student saves against its teacher's API, and when it pays. Any one currency."""
    with service() as client:
        found = client.students.economics(
            student,
            calls_per_month=calls_per_month,
            host_cost_per_month=host_cost_per_month,
            price_per_call=price_per_call,
            price_per_1k_tokens=price_per_1k_tokens,
            tokens_per_call=tokens_per_call,
            training_cost=training_cost,
            fallback_coverage=fallback_coverage,
        )
        if as_json:
            show_json(found.raw)
            return
        _show(found, calls_per_month)


def _show(found: Economics, calls: float) -> None:
    costs = (found.teacher_cost_per_month, found.student_cost_per_month)
    rows = [
        ("a month", *(_amount(cost) for cost in costs), _amount(found.saving_per_month)),
        ("1,000 calls", *(_amount(1000 * cost / calls) for cost in (*costs, found.saving_per_month))),
    ]
    show_table(("costs of", "teacher", "its student", "saving"), rows)
    even, months = found.break_even_calls_per_month, found.break_even_months
    speed = found.terms.get("texts_per_second")
    show_fields(
        {
            "hosts": found.hosts,
            "utilisation": None if found.utilisation is None else f"{100 * found.utilisation:.3g} %",
            "speed of one": None if speed is None else f"{speed:,.0f} texts per second",
            "training": _amount(found.terms.get("training_cost", 0.0)),
            "pays from": "no volume" if even is None else f"{even:,.0f} calls a month",
            "training is back": "never" if months is None else f"after {text(months)} months",
        }
    )
    console.print(f"[bold]{text(found.verdict)}[/]")


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value == 0 or abs(value) >= 1 else f"{value:.2g}"
