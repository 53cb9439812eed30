"""`limbeck webhooks …`: addresses that are called when something happens."""

from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.completion import ids
from limbeck.cli.output import After, AsJson, Limit, complaints, console, service, show_json, show_table
from limbeck.objects import Delivery

webhooks = typer.Typer(no_args_is_help=True, help="Addresses that are called when something happens.")

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A webhook, wh_…", show_default=False, autocompletion=ids("webhooks"))
]


@webhooks.command("add")
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="What is called, https://…", show_default=False)],
    event: Annotated[
        list[str] | None,
        typer.Option(help="Only these, such as job.succeeded; may be repeated. Default: all.", show_default=False),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The secret that signs its calls. Default: one is made.",
            show_default=False,
            autocompletion=ids("secrets"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have an address called. A signing secret that is made for it is shown once, alone on standard output."""
    with service() as client:
        made = client.webhooks.create(url, events=event or None, secret=secret)
        if as_json:
            show_json(made.raw)
        elif made.signing_secret is None:
            console.print(f"{made.id}  [dim]limbeck webhooks test {made.id}[/]")
        else:
            complaints.print(f"[dim]{made.id} calls {escape(url)}. Its signing secret is shown this once:[/]")
            console.print(escape(made.signing_secret))


@webhooks.command("list")
def list_webhooks(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List webhooks, newest first."""
    with service() as client:
        found = client.webhooks.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [
            (item.id, item.url, item.events, "off" if item.disabled_at else "on", item.disabled_reason, item.created_at)
            for item in found
        ]
        headings = ("id", "url", "events", "", "why", "created")
        show_table(headings, rows, empty="no webhooks", more=found.has_more)


@webhooks.command("deliveries")
def deliveries(webhook: Id, limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List what was sent, or is still to be sent, newest first."""
    with service() as client:
        found = client.webhooks.deliveries(webhook, limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [
            (item.id, item.type, item.status, item.attempts, item.last_status_code, item.last_error, item.created_at)
            for item in found
        ]
        headings = ("id", "event", "status", "tries", "answer", "error", "created")
        show_table(headings, rows, empty="nothing was sent", more=found.has_more)


@webhooks.command("replay")
def replay(
    webhook: Id,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="What was sent, dl_…", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Send something once more."""
    with service() as client:
        _sent(client.webhooks.replay(webhook, delivery), webhook, as_json)


@webhooks.command("test")
def send_test(webhook: Id, as_json: AsJson = False) -> None:
    """Send a webhook an event that means nothing, to see whether it arrives."""
    with service() as client:
        _sent(client.webhooks.test(webhook), webhook, as_json)


@webhooks.command("delete")
def delete(webhook: Id, as_json: AsJson = False) -> None:
    """Delete a webhook: nothing calls it any more."""
    with service() as client:
        client.webhooks.delete(webhook)
        show_json({"id": webhook, "deleted": True}) if as_json else console.print(f"deleted {escape(webhook)}")


def _sent(made: Delivery, webhook: str, as_json: bool) -> None:
    if as_json:
        show_json(made.raw)
        return
    console.print(f"{made.id} is {made.status}  [dim]limbeck webhooks deliveries {escape(webhook)}[/]")
