"""`limbeck up`: the service on this machine, until it is told to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from limbeck import address
from limbeck.cli.output import AsJson, complaints, console, show_line, telling
from limbeck.house import House, Plan

_LOOK_SECONDS = 0.5

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept. Default: LIMBECK_DATA_DIR, or limbeck-data here.", show_default=False),
]


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    data_dir: DataDir = None,
    slots: Annotated[int | None, typer.Option(min=1, max=64, help="Jobs to train at once.", show_default="1")] = None,
    no_broker: Annotated[bool, typer.Option("--no-broker", help="The worker looks into the database instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the service on this machine: broker, API and a worker. Ctrl-C stops all of it."""
    plan = Plan(address.data_dir(data_dir), host=host, port=port, slots=slots, broker=not no_broker)
    began = time.monotonic()
    with telling(), House(plan, _say) as house, until_stopped(house):
        house.start()
        if as_json:
            pids = {name: child.pid for name, child in house.children.items()}
            files = {"data_dir": str(plan.data_dir), "key_file": str(house.key_file), "logs": str(house.logs)}
            show_line({"url": plan.url, **files, "broker": house.broker_kind, "pids": pids})
        else:
            _greet(house, time.monotonic() - began)
        while True:
            house.look_after()
            time.sleep(_LOOK_SECONDS)


@contextmanager
def until_stopped(house: House) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end what is inside, once; the next one makes the house stop in a hurry."""
    stopping = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            house.hurry = True
            return
        stopping = True
        raise KeyboardInterrupt(signal.Signals(number).name)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it is ignored, and stays so
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in wanted}
    try:
        yield
    except KeyboardInterrupt as told:
        complaints.print(f"[dim]{told}: stopping …[/]")
    finally:
        # The handlers stay while the house stops: a second Ctrl-C hurries it, and does not leave half of it behind.
        stopping = True
        house.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(sentence: str) -> None:
    complaints.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(sentence)}")


def _greet(house: House, elapsed: float) -> None:
    plan = house.plan
    console.print(f"[bold green]Limbeck is ready[/] at [bold]{plan.url}[/]  [dim]({elapsed:.1f} s)[/]")
    console.print(f"  key     {escape(str(house.key_file))}")
    console.print(f"  data    {escape(str(plan.data_dir))}")
    console.print(f"  logs    {escape(str(house.logs))}")
    console.print(f"  broker  {escape(house.broker_kind)}")
    if plan.data_dir != address.data_dir():
        console.print(f"  [dim]in another terminal first:[/] export LIMBECK_DATA_DIR={escape(str(plan.data_dir))}")
    console.print("Next: limbeck init --dataset FILE.csv · limbeck run job.yaml · limbeck open")
    console.print("[dim]Ctrl-C stops everything.[/]")
