"""`limbeck keys …` and `limbeck workers`"""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.completion import among, ids, only
from limbeck.cli.output import After, AsJson, Limit, complaints, console, seconds, service, show_json, show_table

keys = typer.Typer(no_args_is_help=True, help="API keys; needs the scope admin.")


_SCOPES = ("read", "jobs", "deploy", "predict", "admin")


@keys.command("create")
def create(
    scopes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCOPE…",
            help=" ".join(_SCOPES),
            show_default=False,
            callback=only(_SCOPES),
            autocompletion=among(_SCOPES),
        ),
    ],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    owner: Annotated[
        str | None, typer.Option(help="Whose rows it works with; default: yours.", show_default=False)
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Expires after so many.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown once."""
    with service() as client:
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = client.keys.create(scopes, name=name, owner=owner, expires_at=expires_at)
        if as_json:
            show_json(made.raw)
            return
        complaints.print(f"[dim]{made.id}, scopes {' '.join(made.scopes)}. The key is shown this once:[/]")
        console.print(escape(made.key or ""))


@keys.command("list")
def list_keys(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List keys, newest first, without their secrets."""
    with service() as client:
        found = client.keys.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [
            (
                key.id,
                f"lk_{key.public_id}_…",
                key.name,
                key.owner,
                " ".join(key.scopes),
                key.last_used_at,
                key.revoked_at,
            )
            for key in found
        ]
        show_table(("id", "key", "name", "owner", "scopes", "last used", "revoked"), rows, more=found.has_more)


@keys.command("delete")
def delete(
    key: Annotated[
        str, typer.Argument(metavar="ID", help="A key, key_…", show_default=False, autocompletion=ids("keys"))
    ],
    as_json: AsJson = False,
) -> None:
    """Revoke a key: from within a second on it opens nothing."""
    with service() as client:
        client.keys.delete(key)
        show_json({"id": key, "revoked": True}) if as_json else console.print(f"revoked {key}")


def workers(as_json: AsJson = False) -> None:
    """List who trains."""
    with service() as client:
        found = client.workers()
        if as_json:
            show_json([worker.raw for worker in found])
            return
        rows = [
            (
                worker.host,
                f"{worker.device} {worker.device_name}".strip(),
                worker.slots,
                worker.jobs,
                "alive" if worker.alive else "gone",
                f"{seconds(worker.seconds_since_seen)} ago",
            )
            for worker in found
        ]
        show_table(("host", "device", "slots", "jobs", "", "seen"), rows, empty="no workers")
