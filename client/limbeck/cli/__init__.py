"""The command `limbeck`. One file for each group of commands; this one only puts them together."""

from typing import Annotated

import typer

from limbeck.cli.comparing import compare
from limbeck.cli.datasets import datasets, teachers
from limbeck.cli.demo import demo
from limbeck.cli.deployments import deployments
from limbeck.cli.doctor import doctor
from limbeck.cli.economics import economics
from limbeck.cli.exporting import export
from limbeck.cli.init import init
from limbeck.cli.jobs import jobs
from limbeck.cli.keys import keys, workers
from limbeck.cli.mirroring import log
from limbeck.cli.opening import open_pages, status
from limbeck.cli.predict import feedback, predict, try_student
from limbeck.cli.running import run
from limbeck.cli.secrets import secrets
from limbeck.cli.students import students
from limbeck.cli.up import up
from limbeck.cli.webhooks import webhooks
from limbeck.client import __version__

app = typer.Typer(
    name="limbeck",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Knowledge distillation as a service: a small student with proof that it does the teacher's job.",
    epilog="To begin: limbeck up, then limbeck init --dataset FILE.csv and limbeck run job.yaml. "
    "LIMBECK_URL and LIMBECK_API_KEY say which service; default: the one that `limbeck up` started here. "
    "Every command takes --json.",
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


_HERE = "This machine"
_WAY = "From rows to a student"
_SERVES = "Students in production"
_SERVICE = "The service"

app.command("up", rich_help_panel=_HERE)(up)
app.command("demo", rich_help_panel=_HERE)(demo)
app.command("doctor", rich_help_panel=_HERE)(doctor)
app.command("init", rich_help_panel=_WAY)(init)
app.command("run", rich_help_panel=_WAY)(run)
app.add_typer(datasets, name="datasets", rich_help_panel=_WAY)
app.add_typer(teachers, name="teachers", rich_help_panel=_WAY)
jobs.command("log")(log)
app.add_typer(jobs, name="jobs", rich_help_panel=_WAY)
students.command("export")(export)
students.command("try")(try_student)
app.add_typer(students, name="students", rich_help_panel=_WAY)
app.command("compare", rich_help_panel=_WAY)(compare)
app.add_typer(deployments, name="deployments", rich_help_panel=_SERVES)
app.command("predict", rich_help_panel=_SERVES)(predict)
app.command("feedback", rich_help_panel=_SERVES)(feedback)
app.command("economics", rich_help_panel=_SERVES)(economics)
app.command("status", rich_help_panel=_SERVICE)(status)
app.command("open", rich_help_panel=_SERVICE)(open_pages)
app.command("workers", rich_help_panel=_SERVICE)(workers)
app.add_typer(keys, name="keys", rich_help_panel=_SERVICE)
app.add_typer(secrets, name="secrets", rich_help_panel=_SERVICE)
app.add_typer(webhooks, name="webhooks", rich_help_panel=_SERVICE)
