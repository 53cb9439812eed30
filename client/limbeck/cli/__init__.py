"""The command `limbeck`. One file for each group of commands; this one only puts them together."""

from typing import Annotated

import typer

from limbeck.cli.datasets import datasets, teachers
from limbeck.cli.demo import demo
from limbeck.cli.deployments import deployments
from limbeck.cli.doctor import doctor
from limbeck.cli.economics import economics
from limbeck.cli.jobs import jobs
from limbeck.cli.keys import keys, workers
from limbeck.cli.predict import feedback, predict
from limbeck.cli.students import students
from limbeck.cli.up import up
from limbeck.client import __version__

app = typer.Typer(
    name="limbeck",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Knowledge distillation as a service: a small student with proof that it does the teacher's job.",
    epilog="LIMBECK_URL and LIMBECK_API_KEY say which service; default: the one that `limbeck up` started here.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"limbeck {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of the command itself."""


app.command("up", rich_help_panel="This machine")(up)
app.command("demo", rich_help_panel="This machine")(demo)
app.command("doctor", rich_help_panel="This machine")(doctor)
app.add_typer(datasets, name="datasets", rich_help_panel="The service")
app.add_typer(teachers, name="teachers", rich_help_panel="The service")
app.add_typer(jobs, name="jobs", rich_help_panel="The service")
app.add_typer(students, name="students", rich_help_panel="The service")
app.add_typer(deployments, name="deployments", rich_help_panel="The service")
app.command("predict", rich_help_panel="The service")(predict)
app.command("feedback", rich_help_panel="The service")(feedback)
app.command("economics", rich_help_panel="The service")(economics)
app.add_typer(keys, name="keys", rich_help_panel="The service")
app.command("workers", rich_help_panel="The service")(workers)
