"""Tiny published students of every kind of task, untrained: for whoever loads and serves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers import BertTokenizer

from models.answers import Kind
from models.artifacts import write_manifest
from models.inputs import Input, Pair, Question, Words
from models.runtime import Runtime
from models.specs import Task
from tests.factories import LABELS, tiny_config, tiny_rows, tiny_tokenizer
from worker import export
from worker.folders import class_of, head_of

TAGS = ("O", "B-person", "I-person", "B-place", "I-place")
TEXTS = tiny_rows(40)[0]
INPUTS: Mapping[Kind, list[Input]] = {
    "text-classification": list(TEXTS),
    "text-regression": [Pair(one, other) for one, other in zip(TEXTS[::2], TEXTS[1::2], strict=True)],
    "token-classification": [Words(tuple(text.split())) for text in TEXTS],
    "question-answering": [
        Question(question, ". ".join(TEXTS[at : at + 4])) for at, question in enumerate(TEXTS[20:30])
    ],
}
_COLUMNS: Mapping[Kind, dict[str, str]] = {
    "text-classification": {"text": "text", "label": "label"},
    "text-regression": {"text": "text", "text_pair": "other", "target": "target"},
    "token-classification": {"tokens": "tokens", "tags": "tags"},
    "question-answering": {"question": "question", "context": "context", "answers": "answers"},
}
_LABELS: Mapping[Kind, Sequence[str]] = {
    "text-classification": LABELS,
    "text-regression": ("target",),
    "token-classification": TAGS,
    "question-answering": (),
}


def tiny_student(
    folder: Path,
    kind: Kind = "text-classification",
    *,
    seed: int = 0,
    max_length: int = 32,
    config: Mapping[str, Any] | None = None,
    **task: Any,
) -> Path:
    """`folder` with a checkpoint, `student.onnx` and `golden.json`; `task` are further fields of the task's spec.

    `config` is what stands in config.json beside what transformers puts there.
    """
    columns: dict[str, Any] = {"kind": kind, "max_length": max_length, **_COLUMNS[kind], **task}
    if kind == "question-answering":
        columns.setdefault("stride", max_length // 4)
        config = {"limbeck_stride": columns["stride"], **(config or {})}
    spec: Task = TypeAdapter(Task).validate_python(columns)
    labels = _LABELS[kind]
    network = tiny_answerer(spec, labels or ("start", "end"), seed=seed)
    tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=max_length)
    export.write_student(folder, network, tokenizer, task=spec, labels=labels, extra=config)
    export.to_onnx(network, folder, max_length=max_length)
    export.write_golden(folder, INPUTS[kind][:12])
    return folder


def published(folder: Path, kind: Kind = "text-classification", **options: Any) -> Path:
    """A `tiny_student` with its manifest: what a store publishes."""
    tiny_student(folder, kind, **options)
    runtime = Runtime.open(folder)
    write_manifest(folder, kind="student", task=kind, labels=runtime.labels, max_length=runtime.max_length)
    return folder


def tiny_answerer(task: Task, labels: Sequence[str], *, seed: int = 0) -> Any:
    """The network of `tiny_student`, in evaluation mode; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = class_of(head_of(task)).from_config(tiny_config(labels))
    return network.eval()
