"""`limbeck init`: a job file to begin with."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli import columns, jobfile
from limbeck.cli.jobfile import TaskKind
from limbeck.cli.output import AsJson, console, show_json, telling
from limbeck.errors import LimbeckError


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("job.yaml"),
    task: Annotated[
        TaskKind | None, typer.Option(help="The kind of task. Default: as the dataset looks.", show_default=False)
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rows, CSV or JSONL: its columns are filled in.", show_default=False),
    ] = None,
    teacher: Annotated[str, typer.Option(metavar="REFERENCE", help="Who teaches.")] = jobfile.DEFAULT_TEACHER,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a job file in which every choice is explained. Asks nothing, and calls no service."""
    with telling():
        kind, found = columns.guess(dataset, task) if dataset else (task or jobfile.KINDS[0], {})
        spec = jobfile.job(
            kind,
            file=_beside(file, dataset) if dataset else "rows.csv",
            columns=found,
            teacher=teacher,
            name=jobfile.deployment_name(_stem(file, dataset)),
        )
        try:
            with file.open("w" if force else "x", encoding="utf-8") as target:
                target.write(jobfile.written(spec, str(file)))
        except FileExistsError:
            raise LimbeckError(f"{file} is there already", hint="give another name, or --force") from None
        except OSError as error:
            raise LimbeckError(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        show_json({"file": str(file.absolute()), "spec": spec})
        return
    read = ", ".join(f"{place} in {name}" for place, name in found.items())
    console.print(f"wrote [bold]{escape(str(file))}[/]  [dim]{kind}{escape(f': {read}' if read else '')}[/]")
    first = "" if dataset else "name your rows and their columns in it, then "
    console.print(f"[dim]next:[/] {first}limbeck run {escape(str(file))}")


def _stem(file: Path, dataset: Path | None) -> str:
    """What the job is about, as the files' names say it."""
    if dataset is not None:
        return dataset.stem
    return "my-student" if file.stem == "job" else file.stem


def _beside(file: Path, dataset: Path) -> str:
    """The path of the dataset as it is written into the job file: relative to that."""
    try:
        return dataset.resolve().relative_to(file.resolve().parent).as_posix()
    except ValueError:
        return str(dataset.resolve())
