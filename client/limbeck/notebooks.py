"""How answers look: in one line of text, and as a table where a notebook shows HTML.

Whatever comes from the service is text here. It is escaped, so that a job's name is never markup, and there is no
script.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MOST_ROWS = 100
_MOST_CHARS = 200


def brief(answer: "DataclassInstance") -> str:
    """`Job(id='job_…', status='running', progress=0.5)`: what is not as it is by default."""
    return f"{type(answer).__name__}({', '.join(f'{name}={value!r}' for name, value in told(answer).items())})"


def told(answer: "DataclassInstance") -> dict[str, Any]:
    """The fields that say something: not those that are as they are by default, and none that is kept from a repr."""
    found = {}
    for one in fields(answer):
        value = getattr(answer, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.repr and value != default and value is not None:
            found[one.name] = value
    return found


def card(answer: "DataclassInstance") -> str:
    """One answer, a line for each field."""
    rows = "".join(f"<tr><th>{escape(name)}</th>{_cell(name, value)}</tr>" for name, value in told(answer).items())
    return f"<table><caption>{escape(type(answer).__name__)}</caption><tbody>{rows}</tbody></table>"


def table(caption: str, rows: Sequence[Mapping[str, Any]], more: str = "") -> str:
    """A row for each mapping, a column for each name that one of them has, in the order in which they come."""
    shown = rows[:_MOST_ROWS]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(name, row.get(name)) for name in columns)}</tr>" for row in shown)
    hidden = len(rows) - len(shown)
    foot = ", ".join(word for word in (f"{hidden} more are not shown" if hidden else "", more) if word)
    below = f"<p>{escape(foot)}</p>" if foot else ""
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
    )


def lines(items: Iterable[object]) -> str:
    return "".join(f"\n  {item!r}" for item in items)


def _cell(name: str, value: Any) -> str:
    if name == "progress" and isinstance(value, float):
        return f'<td><progress value="{value:.3f}" max="1"></progress> {value:.0%}</td>'
    return f"<td>{escape(_text(value))}</td>"


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S} {value.tzname() or ''}".rstrip()
        case float():
            return f"{value:.4g}"
        case list() if all(isinstance(one, str) for one in value):
            text = ", ".join(value)
        case list() if all(isinstance(one, dict) and "name" in one for one in value):
            text = ", ".join(str(one["name"]) for one in value)
        case _:
            text = str(value)
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 1]}…"
