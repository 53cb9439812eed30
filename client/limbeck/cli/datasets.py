"""`limbeck datasets …` and `limbeck teachers …`"""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.completion import ids
from limbeck.cli.output import After, AsJson, Limit, console, service, show_fields, show_json, show_table, size, text
from limbeck.objects import Dataset

datasets = typer.Typer(no_args_is_help=True, help="Tables of texts and labels.")
teachers = typer.Typer(no_args_is_help=True, help="Checkpoints of your own to learn from.")

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A dataset, ds_…", show_default=False, autocompletion=ids("datasets"))
]
TeacherId = Annotated[
    str, typer.Argument(metavar="ID", help="A teacher, tc_…", show_default=False, autocompletion=ids("teachers"))
]


@datasets.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSONL or Parquet.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.", show_default=False)] = None,
    encoding: Annotated[str | None, typer.Option(help="Default: UTF-8.", show_default=False)] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace bytes that cannot be decoded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a file of rows."""
    with service() as client:
        found = client.datasets.upload(file, name=name, encoding=encoding, errors="replace" if replace else None)
        _show(found, as_json)


@datasets.command("list")
def list_datasets(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with service() as client:
        found = client.datasets.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.id, item.name, item.rows, size(item.bytes), item.status, item.created_at) for item in found]
        show_table(("id", "name", "rows", "size", "status", "created"), rows, empty="no datasets", more=found.has_more)


@datasets.command("show")
def show(dataset: Id, as_json: AsJson = False) -> None:
    """Show a dataset's columns and warnings."""
    with service() as client:
        _show(client.datasets.get(dataset), as_json)


@datasets.command("rows")
def rows(
    dataset: Id,
    limit: Limit = 20,
    offset: Annotated[int, typer.Option(min=0, help="Skip so many.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show some rows."""
    with service() as client:
        found = client.datasets.rows(dataset, limit=limit, offset=offset)
        if as_json:
            show_json(found.raw)
            return
        names = list(dict.fromkeys(name for row in found for name in row))
        show_table(names, [[row.get(name) for name in names] for row in found], empty="no rows")


@datasets.command("delete")
def delete(dataset: Id, as_json: AsJson = False) -> None:
    """Delete a dataset that no unfinished job needs."""
    with service() as client:
        client.datasets.delete(dataset)
        show_json({"id": dataset, "deleted": True}) if as_json else console.print(f"deleted {dataset}")


def _show(found: Dataset, as_json: bool) -> None:
    if as_json:
        show_json(found.raw)
        return
    show_fields(
        {
            "id": found.id,
            "name": found.name,
            "status": found.status,
            "rows": found.rows,
            "size": size(found.bytes),
            "sha256": found.sha256,
            "created": found.created_at,
        }
    )
    columns = [
        (column.get("name"), column.get("type"), column.get("nulls"), column.get("distinct"), column.get("examples"))
        for column in found.columns
    ]
    show_table(("column", "type", "nulls", "distinct", "examples"), columns)
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {text(warning.get('message') if isinstance(warning, dict) else warning)}")


@teachers.command("upload")
def upload_teacher(
    folder: Annotated[Path, typer.Argument(help="With config.json, tokenizer and safetensors.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint; a job names it teacher:tc_…"""
    with service() as client:
        found = client.teachers.upload(folder, name=name)
        if as_json:
            show_json(found.raw)
            return
        show_fields({"reference": found.reference, "name": found.name, "size": size(found.bytes)})


@teachers.command("list")
def list_teachers(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List uploaded teachers, newest first."""
    with service() as client:
        found = client.teachers.list(limit=limit, after=after)
        if as_json:
            show_json(found.raw)
            return
        rows = [(item.reference, item.name, size(item.bytes), item.created_at) for item in found]
        show_table(("reference", "name", "size", "created"), rows, empty="no teachers", more=found.has_more)


@teachers.command("show")
def show_teacher(teacher: TeacherId, as_json: AsJson = False) -> None:
    """Show an uploaded teacher."""
    with service() as client:
        found = client.teachers.get(teacher.removeprefix("teacher:"))
        if as_json:
            show_json(found.raw)
            return
        kept = {name: value for name, value in found.raw.items() if name not in {"object", "config"}}
        show_fields({**kept, "size": size(found.bytes), "network": found.config.get("model_type")})


@teachers.command("delete")
def delete_teacher(teacher: TeacherId, as_json: AsJson = False) -> None:
    """Delete a teacher that no unfinished job needs."""
    with service() as client:
        client.teachers.delete(teacher.removeprefix("teacher:"))
        show_json({"id": teacher, "deleted": True}) if as_json else console.print(f"deleted {teacher}")
