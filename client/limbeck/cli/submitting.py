"""From a file that a person writes to a job: files that it names become datasets, problems get their lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.datafiles import UNKNOWN, named_files, with_datasets, with_known_datasets
from limbeck.cli.documents import Document
from limbeck.cli.output import complain, complaints, show_problems
from limbeck.client import Client
from limbeck.errors import ApiError
from limbeck.objects import Job, Validation

SPEC_HINT = "a job spec is an object with task, dataset, …; limbeck init writes one with explanations"
NOT_UPLOADED = "the rows have not been uploaded, so that their columns were not looked at; limbeck run uploads them"

SpecFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A job, YAML or JSON; - reads standard input.", show_default=False)
]
IdempotencyKey = Annotated[
    str | None, typer.Option("--idempotency-key", help="The same key and spec are the same job.", show_default=False)
]


def submitted(
    client: Client, document: Document, file: Path, key: str | None, say: Callable[[str], None], *, wrong: int = 1
) -> Job:
    """The job of a file, submitted; files that it names are uploaded. Exits with `wrong` where it is refused."""
    if named_files(document.value):
        # Rows may be large: what is wrong with the rest is told before they are sent.
        found = checked(client, document, file)
        if not found.valid:
            show_invalid(found, document)
            raise typer.Exit(wrong)
    spec = with_datasets(client, document.value, folder_of(file), say)
    try:
        return client.jobs.submit(spec, idempotency_key=key)
    except ApiError as error:
        if error.status != 422:
            raise
        complain(error, located=document.located)
        raise typer.Exit(wrong) from None


def show_invalid(found: Validation, document: Document) -> None:
    """Every problem with the line on which it stands."""
    count = len(found.problems)
    complaints.print(f"[bold red]Invalid:[/] {count} {'problem' if count == 1 else 'problems'}")
    show_problems(found.problems, document.located)


def folder_of(file: Path) -> Path:
    """Where the files that a job file names are: beside it, or here where it comes from standard input."""
    return Path() if str(file) == "-" else file.parent


def checked(client: Client, document: Document, file: Path) -> Validation:
    """What is wrong with the job of a file, or what it stands for. Creates nothing.

    Rows that have not been uploaded are no problem; but then nothing is known of their columns.
    """
    found = client.jobs.validate(with_known_datasets(client, document.value, folder_of(file)))
    others = [one for one in found.problems if not (one.code == "dataset_not_found" and UNKNOWN in one.message)]
    if len(others) == len(found.problems):
        return found
    raw = {
        "valid": not others,
        "problems": [vars(one) for one in others],
        "resolved_spec": None,
        "estimates": None,
        "estimates_reason": NOT_UPLOADED,
    }
    return Validation(valid=not others, problems=others, estimates_reason=NOT_UPLOADED, raw=raw)


def tell(sentence: str) -> None:
    complaints.print(f"[dim]{escape(sentence)}[/]")


def quiet(_sentence: str) -> None:
    """Says nothing: where JSON is wanted."""
