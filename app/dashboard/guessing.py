"""Which columns of a dataset a task is likely to read. A guess, for a form that a person looks at. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

TaskKind = Literal["text-classification", "text-regression", "token-classification", "question-answering"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

Column = Mapping[str, Any]
"""`{"name", "type", "distinct"?, "nulls"?, …}`, as the API describes it."""

PLACES: Mapping[TaskKind, tuple[str, ...]] = {
    "text-classification": ("text", "label"),
    "text-regression": ("text", "target"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers"),
}
"""The columns that a task of each kind must name."""
_TYPES: Mapping[str, frozenset[str]] = {
    "text": frozenset({"string"}),
    "label": frozenset({"string", "integer", "boolean", "list of strings"}),
    "target": frozenset({"float", "integer"}),
    "tokens": frozenset({"list of strings"}),
    "tags": frozenset({"list of strings"}),
    "question": frozenset({"string"}),
    "context": frozenset({"string"}),
    "answers": frozenset({"answers"}),
}
_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "content", "body", "message", "tweet", "review", "premise", "title"),
    "label": ("label", "labels", "class", "category", "sentiment", "intent", "topic", "topics"),
    "target": ("target", "score", "value", "rating", "similarity", "label"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "question": ("question", "query"),
    "context": ("context", "passage", "document"),
    "answers": ("answers", "answer"),
}
"""What a column for each place is often called, the likeliest first."""
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"), ("question1", "question2"))
_MOST_LABELS = 50


def guess_tasks(columns: Sequence[Column], rows: int) -> dict[str, dict[str, Any]]:
    """A task of every kind that these columns could be read as, the likeliest kind first."""
    kinds = sorted(KINDS, key=lambda kind: -_likeliness(kind, columns, rows))
    found = {kind: _task(kind, columns, rows) for kind in kinds}
    return {kind: task for kind, task in found.items() if task is not None}


def _likeliness(kind: TaskKind, columns: Sequence[Column], rows: int) -> int:
    types = [column["type"] for column in columns]
    match kind:
        case "question-answering":
            return 4 if "answers" in types else 0
        case "token-classification":
            return 3 if types.count("list of strings") >= 2 else 0
        case "text-regression":
            # Whole numbers may be the numbers of classes; broken ones are none.
            labelled = any(_looks_like_labels(column, rows) for column in columns if column["type"] != "float")
            return 2 if "float" in types and not labelled else 0
        case "text-classification":
            return 1


def _task(kind: TaskKind, columns: Sequence[Column], rows: int) -> dict[str, Any] | None:
    task: dict[str, Any] = {"kind": kind}
    left = list(columns)
    # The label is looked for first: what is left over is text.
    for place in reversed(PLACES[kind]):
        column = _column(place, left, rows)
        if column is None:
            return None
        left.remove(column)
        task[place] = column["name"]
        if place == "label" and column["type"] == "list of strings":
            task["multi_label"] = True
    ordered = {name: task[name] for name in ("kind", *PLACES[kind], "multi_label") if name in task}
    second = next((other for one, other in _PAIRS if task.get("text") == one), None)
    if second is not None and any(column["name"] == second and column["type"] == "string" for column in left):
        ordered["text_pair"] = second
    return ordered


def _column(place: str, columns: Sequence[Column], rows: int) -> Column | None:
    """The likeliest one: by its name, else by what is in it."""
    fitting = [column for column in columns if column["type"] in _TYPES[place]]
    by_name = {str(column["name"]).lower(): column for column in fitting}
    for name in _NAMES[place]:
        if name in by_name:
            return by_name[name]
    if place == "label":
        return min((one for one in fitting if _looks_like_labels(one, rows)), key=_distinct, default=None)
    if place in {"text", "context"}:
        return max(fitting, key=_example_length, default=None)
    if place == "target":
        return next((one for one in fitting if one["type"] == "float"), fitting[0] if fitting else None)
    return fitting[0] if fitting else None


def _looks_like_labels(column: Column, rows: int) -> bool:
    """Few different values, each of them often."""
    if column["type"] == "list of strings":
        return True
    return column["type"] in _TYPES["label"] and 2 <= _distinct(column) <= min(_MOST_LABELS, rows // 2)


def _distinct(column: Column) -> int:
    return int(column.get("distinct") or 0)


def _example_length(column: Column) -> float:
    examples = column.get("examples") or [""]
    return sum(len(str(example)) for example in examples) / len(examples)
