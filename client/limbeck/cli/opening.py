"""`limbeck open` and `limbeck status`: the way to the service's pages, and how it is."""

import webbrowser
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.output import AsJson, complaints, console, service, show_fields, show_json


def open_pages(
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    as_json: AsJson = False,
) -> None:
    """Open the service's pages in the browser.

    Prints a link that signs one browser in, once, within ten minutes.
    """
    with service() as client:
        link = client.sign_in_link()
        url = f"{client.url}{link.path}"
        if as_json:
            show_json({**link.raw, "url": url})
        else:
            console.print(escape(url))
        if browser and not as_json and not webbrowser.open(url):
            complaints.print("[dim]no browser was found here: open the link yourself[/]")


def status(as_json: AsJson = False) -> None:
    """Show how the service is, who trains, what waits. Exits with 1 if it is not ready."""
    with service() as client:
        ready = client.ready()
        there = ready.status == "ready"
        working = client.workers() if there else []
        waiting = client.jobs.list(status=["queued"], limit=100) if there else None
        running = client.jobs.list(status=["running", "pausing", "cancelling"], limit=100) if there else None
        alive = [worker for worker in working if worker.alive]
        if as_json:
            show_json(
                {
                    "url": client.url,
                    **ready.raw,
                    "workers": len(alive),
                    "running": [job.id for job in running or ()],
                    "queued": [job.id for job in waiting or ()],
                }
            )
        else:
            colour = "green" if ready.status == "ready" else "red"
            console.print(f"[bold {colour}]{escape(ready.status)}[/]  {escape(client.url)}")
            show_fields(
                {
                    **ready.checks,
                    "workers": ", ".join(f"{worker.host}, {worker.device}" for worker in alive)
                    or "none: jobs wait for one",
                    "running": ", ".join(f"{job.id} {job.progress:.0%}" for job in running or ()) or "nothing",
                    "queued": f"{len(waiting)}{' or more' if waiting.has_more else ''}" if waiting else "nothing",
                }
            )
        if ready.status != "ready":
            raise typer.Exit(1)
