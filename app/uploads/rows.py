"""What every kind of rows has in common.

A `Source` is read twice: once to learn its columns and check every line, once to give its rows in Arrow batches.
Neither pass holds more than one batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import Invalid, Problem, TooLarge

BATCH_ROWS = 4096
BATCH_CHARACTERS = 8 * 1024**2
LONGEST_CELL = 1024**2
"""Characters of one text."""
MOST_COLUMNS = 1000
LONGEST_COLUMN_NAME = 200
BAD_LINES_TOLD = 10

STRING, INTEGER, FLOAT, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
STRINGS, NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
ANSWERS = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))])
"""Answers to a question as SQuAD writes them; the two lists are of one length."""
EMPTY_LIST = pa.list_(pa.null())
"""A list that nobody has seen an item of: of texts or of numbers, as the column's other rows are, or else of texts."""
KEPT = "text, numbers, true or false, lists of texts or of numbers, and answers as in SQuAD"


@dataclass(frozen=True)
class Remark:
    code: str
    message: str


class Source(Protocol):
    """A file of rows. `scan` comes first and raises `Invalid` or `TooLarge`."""

    warnings: list[Remark]

    def scan(self, max_rows: int) -> tuple[pa.Schema, int]:
        """The schema and the number of rows."""

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]: ...


@dataclass
class BadLines:
    """Bad lines, until there are enough of them to tell. `unit` is what they are counted in."""

    unit: str = "line"
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str) -> None:
        self.found.append((line, message))
        if len(self.found) >= BAD_LINES_TOLD:
            self.tell()

    def tell(self) -> None:
        """Raises `Invalid` (code `bad_row`) if there is any."""
        if not self.found:
            return
        problems = [Problem("", f"{self.unit} {line}: {message}", "bad_row") for line, message in self.found]
        more = (
            f" (the first of {'at least ' if len(problems) >= BAD_LINES_TOLD else ''}{len(problems)} bad {self.unit}s)"
        )
        raise Invalid(problems[0].message + (more if len(problems) > 1 else ""), code="bad_row", problems=problems)


def check_names(names: Sequence[str]) -> None:
    """Raises `Invalid` (code `bad_header`) with every name that is empty, double, too long or not printable."""
    if len(names) > MOST_COLUMNS:
        raise Invalid(f"{len(names):,} columns; {MOST_COLUMNS} are the most", code="bad_header")
    problems, seen = [], set()
    for position, name in enumerate(names, 1):
        if not name.strip():
            problems.append(f"column {position} has no name")
        elif len(name) > LONGEST_COLUMN_NAME:
            problems.append(f"the name of column {position} has more than {LONGEST_COLUMN_NAME} characters")
        elif not name.isprintable():
            problems.append(f"the name of column {position} has characters that cannot be seen")
        elif name in seen:
            problems.append(f"there are two columns named {name!r}")
        seen.add(name)
    if problems:
        told = [Problem("/file", problem, "bad_header") for problem in problems[:BAD_LINES_TOLD]]
        hint = "the first line names the columns"
        raise Invalid(problems[0], code="bad_header", hint=hint, problems=told)


def check_rows(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise TooLarge(f"more than {max_rows:,} rows", hint="split the file into several datasets")


def check_answers(value: Mapping[str, object]) -> None:
    """Raises ValueError, with the rest of a sentence that begins with the column's name, for what no `ANSWERS` are."""
    if value.keys() != {"text", "answer_start"}:
        raise ValueError(
            "is an object; a value is text, a number, true, false, null, a list of texts or of numbers, or "
            'answers such as {"text": ["…"], "answer_start": [17]}'
        )
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('has a "text" that is not a list of texts')
    if not isinstance(starts, list) or not all(type(start) is int for start in starts):
        raise ValueError('has an "answer_start" that is not a list of integers')
    if len(texts) != len(starts):
        raise ValueError(f'has {len(texts)} in "text" and {len(starts)} in "answer_start"; each text has one start')
    if not all(-(2**63) <= start < 2**63 for start in starts):
        raise ValueError('has an "answer_start" that does not fit 64 bits')


def empty(message: str) -> NoReturn:
    raise Invalid.of([Problem("/file", message, "empty_dataset")])


def all_true(values: pa.Array) -> bool:
    return bool(pc.all(values).as_py())


def named(name: str) -> str:
    shown = name if len(name) <= 60 else name[:59] + "…"
    return repr(shown)
