"""`limbeck jobs log`"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from limbeck.cli.output import AsJson, console, service, show_json
from limbeck.errors import LimbeckError
from limbeck.mirrors import Mirror, Mlflow, TensorBoard, mirror


def log(
    job: Annotated[str, typer.Argument(metavar="ID", help="A job, job_…", show_default=False)],
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write TensorBoard's event files below it.", show_default=False)
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Log a run at this MLflow tracking URI.", show_default=False)
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment; made if need be.")] = "limbeck",
    as_json: AsJson = False,
) -> None:
    """Copy a job's curves, spec and report to TensorBoard or MLflow: until it ends, or at once if it has.

    To log a job twice makes a second copy.
    """
    with service() as client:
        if tensorboard is None and mlflow is None:
            raise LimbeckError("say where to", hint="--tensorboard DIR, --mlflow URI, or both")
        found = client.jobs.get(job)
        mirrors: list[Mirror] = []
        if tensorboard is not None:
            mirrors.append(TensorBoard(tensorboard, found.id))
        if mlflow is not None:
            mirrors.append(Mlflow(mlflow, experiment, found))
        ended = mirror(client, found.id, mirrors)
    if as_json:
        show_json(ended.raw)
    else:
        console.print(f"logged {escape(ended.id)}, which {escape(ended.status)}")
