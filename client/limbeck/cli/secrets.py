"""`limbeck secrets …`: values that jobs and webhooks name and nobody can read back."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.completion import ids
from limbeck.cli.output import AsJson, console, service, show_json, show_table
from limbeck.errors import LimbeckError

secrets = typer.Typer(no_args_is_help=True, help="Values that jobs and webhooks name; needs the scope admin.")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A secret's name.", show_default=False, autocompletion=ids("secrets"))
]


@secrets.command("list")
def list_secrets(as_json: AsJson = False) -> None:
    """List the names of secrets, never their values."""
    with service() as client:
        found = client.secrets.list()
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.name, item.created_at, item.updated_at) for item in found]
        show_table(("name", "created", "changed"), rows, empty="no secrets")


@secrets.command("show")
def show_secret(name: Name, as_json: AsJson = False) -> None:
    """Show when a secret was set, never its value."""
    with service() as client:
        found = client.secrets.get(name)
        if as_json:
            show_json(found.raw)
            return
        show_table(("name", "created", "changed"), [(found.name, found.created_at, found.updated_at)])


@secrets.command("set")
def set_secret(name: Name, as_json: AsJson = False) -> None:
    """Set a secret to what is piped in, or typed unseen; a command line would show it to others.

    printenv TOKEN | limbeck secrets set hub-token
    """
    with service() as client:
        found = client.secrets.put(name, _value())
        show_json(found.raw) if as_json else console.print(f"{escape(found.name)} is set")


@secrets.command("delete")
def delete_secret(name: Name, as_json: AsJson = False) -> None:
    """Delete a secret."""
    with service() as client:
        client.secrets.delete(name)
        show_json({"name": name, "deleted": True}) if as_json else console.print(f"deleted {escape(name)}")


def _value() -> str:
    """The value, without the line's end that most commands put after what they print."""
    if sys.stdin.isatty():
        value: str = typer.prompt("value", hide_input=True, err=True)
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not value:
        raise LimbeckError("the value is empty", hint="printenv TOKEN | limbeck secrets set NAME")
    return value
