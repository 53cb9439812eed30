"""`limbeck students export`"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from limbeck import hub
from limbeck.cli.output import AsJson, complaints, console, service, show_json
from limbeck.hub import Choices


def export(
    student: Annotated[str, typer.Argument(metavar="ID", help="A student, st_…", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if need be.", show_default=False)],
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", help="As the Hub spells it, such as apache-2.0. Default: its sources'.", show_default=False
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A data set of the Hub that it learned from.", show_default=False)
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="With the files that hold rows of the data set.")] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload it too; needs HF_TOKEN.", show_default=False),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made is public.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder that transformers opens and the Hugging Face Hub takes: card, weights, tokenizer, onnx/."""
    with service() as client:
        head = client.students.export(student, folder, Choices(license_, dataset or (), rows))
        url = None if push is None else hub.push(folder, push, private=not public)
    if as_json:
        show_json({"folder": str(folder.absolute()), "card": head, "repository": url})
        return
    console.print(f"in {escape(str(folder))}")
    if head["license"] == hub.UNKNOWN:
        complaints.print("[yellow]licence unknown:[/] its sources name none, or several; see the card, and --license")
    if url is not None:
        console.print(f"uploaded to {escape(url)}")
