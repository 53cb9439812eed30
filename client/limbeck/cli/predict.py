"""`limbeck predict`, `limbeck feedback` and `limbeck students try`"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from limbeck.cli.deployments import Name
from limbeck.cli.output import AsJson, console, service, show_json, text
from limbeck.cli.students import Id
from limbeck.errors import LimbeckError
from limbeck.predictions import Entity, Label, Span

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="TEXT…", help="- reads one text a line.", show_default=False)
]
TextPair = Annotated[str | None, typer.Option(help="The second text, where the task compares two.", show_default=False)]
Question = Annotated[str | None, typer.Option(help="A question, for a task that answers them.", show_default=False)]
Context = Annotated[str | None, typer.Option(help="Where its answer may stand; - reads it.", show_default=False)]


def predict(
    name: Name,
    texts: Texts = None,
    text_pair: TextPair = None,
    question: Question = None,
    context: Context = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="So many labels (default all) or answers (default one) of each.", show_default=False),
    ] = None,
    sticky: Annotated[
        str | None, typer.Option(help="Whom it is for: the same is always the same arm's.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployment."""
    with service() as client:
        wanted = _inputs(f"limbeck predict {name}", texts, text_pair, question, context)
        answers = client.predict(name, wanted, top_k=top_k, sticky=sticky)
        if as_json:
            show_json(answers.raw)
            return
        for item, found in zip(wanted, answers, strict=True):
            shown = item if isinstance(item, str) else "\n".join(item.values())
            console.print(f"{escape(shown)}\n  [cyan]{_best(found)}[/]")
        about = {"arm": answers.arm, "answered by": answers.answered_by, "prediction": answers.prediction_id}
        said = "  ".join(f"{what} {value}" for what, value in about.items() if value)
        if answers.prediction_id or answers.answered_by or answers.arm == "canary":
            console.print(f"[dim]{escape(said)}[/]")


def try_student(
    student: Id,
    texts: Texts = None,
    text_pair: TextPair = None,
    question: Question = None,
    context: Context = None,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Ask its teacher too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Ask a student, deployed or not, and its teacher: for looking, not for production."""
    with service() as client:
        wanted = _inputs(f"limbeck students try {student}", texts, text_pair, question, context)
        found = client.students.predict(student, wanted, teacher=teacher)
        if as_json:
            show_json(found.raw)
            return
        for place, item in enumerate(wanted):
            shown = item if isinstance(item, str) else "\n".join(item.values())
            console.print(f"{escape(shown)}\n  student  [cyan]{_best(found.student[place])}[/]")
            if found.teacher is not None:
                console.print(f"  teacher  [cyan]{_best(found.teacher[place])}[/]")
        if teacher and found.teacher is None and found.teacher_reason:
            console.print(f"[dim]no teacher: {escape(found.teacher_reason)}[/]")


def feedback(
    prediction: Annotated[
        str, typer.Argument(metavar="PREDICTION", help="What predict called it, pr_…", show_default=False)
    ],
    label: Annotated[
        str,
        typer.Argument(
            metavar="LABEL", help="The true answer; JSON where it is a list or a number.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell the true answer of a captured prediction."""
    with service() as client:
        found = client.predictions.feedback(prediction, _label(label))
        show_json(found.raw) if as_json else console.print(f"noted: {found.id} is {text(found.label)}")


def _label(given: str) -> Any:
    """A list, an object or a number, as it is written in JSON; every other text is itself."""
    try:
        found = json.loads(given)
    except ValueError:
        return given
    return found if isinstance(found, list | dict | int | float) and not isinstance(found, bool) else given


def _inputs(
    command: str, texts: list[str] | None, text_pair: str | None, question: str | None, context: str | None
) -> list[str | Mapping[str, str]]:
    """`command`: what was called, for hints."""
    if question is not None or context is not None:
        if question is None or context is None or texts or text_pair is not None:
            raise LimbeckError(
                "give a question with its context and nothing else",
                hint=f'{command} --question "who?" --context "It was me."',
            )
        return [{"question": question, "context": sys.stdin.read() if context == "-" else context}]
    wanted = [line.rstrip("\n") for line in sys.stdin] if texts == ["-"] else texts
    if not wanted:
        raise LimbeckError("give at least one text", hint=f'{command} "what a day"')
    return [text if text_pair is None else {"text": text, "text_pair": text_pair} for text in wanted]


def _best(found: Sequence[Label | Entity | Span]) -> str:
    return "  ".join(_shown(one) for one in found) or "nothing"


def _shown(found: Label | Entity | Span) -> str:
    match found:
        case Label(label=text) | Span(answer=text):
            return f"{escape(text) or 'no answer'} {found.score:.3f}"
        case Entity():
            return f"{escape(found.word)} ({escape(found.entity_group)}) {found.score:.3f}"
