"""Inputs and answers as tensors, as the Open Inference Protocol (version 2) has them, in JSON or in its binary form.

Inputs are tensors of the datatype BYTES, n strings each: `text`; `text` with `text_pair`; `question` with `context`.
What comes back depends on the kind of task, C labels in the order that the model's metadata has them:

    text-classification     `label` BYTES (n), the best one, its `score` FP32 (n), and `scores` FP32 (n, C);
                            with `top_k` `label` and `score` alone, (n, K), best first
    text-regression         `score` FP32 (n), the number
    token-classification    `entities` BYTES (n), each a JSON list, as `/predict` has them
    question-answering      `answer` BYTES (n), the best one, its `score` FP32 (n), and `answers` BYTES (n), each a JSON
                            list, best first, as `/predict` has them with `top_k`

In the binary form (the protocol's extension `binary_tensor_data`) a body is a JSON document and then the tensors whose
parameter `binary_data_size` says so, in their order: strings each after its length in 4 bytes, numbers of 4 bytes, all
little-endian.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never, cast

from pydantic import BaseModel, ConfigDict, Field

from app.routes.predict import unreadable
from models import inputs as reading
from models.answers import Answer, Kind, Label, Parameters, Span
from models.errors import Invalid, Problem
from models.inputs import Input
from models.runtime import Runtime
from models.settings import Settings

Datatype = Literal["BYTES", "FP32"]

_SHAPES = "[n] or [n, 1]"
_MOST_PROBLEMS = 20


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputTensor(_Object):
    name: str = Field(max_length=64)
    shape: list[int] = Field(max_length=8, description="[n] or [n, 1]")
    datatype: str = Field(max_length=16, description="BYTES")
    parameters: dict[str, Any] = {}
    data: list[Any] | None = Field(None, description="n strings; absent where they follow the JSON document as bytes")


class WantedOutput(_Object):
    name: str = Field(max_length=64)
    parameters: dict[str, Any] = {}


class InferRequest(_Object):
    """The body of an `infer`."""

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = Field({}, description="those of /predict")
    inputs: list[InputTensor] = Field(max_length=8)
    outputs: list[WantedOutput] | None = Field(None, max_length=8, description="default: all")


class OutputTensor(BaseModel):
    """A tensor of an answer; without `data` its bytes follow the JSON document."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, int] | None = None
    data: list[str] | list[float] | None = None


class InferResponse(BaseModel):
    """The answer to an `infer`. `parameters` say who gave it, as the headers of `/predict` do."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    """-1: any number."""


@dataclass(frozen=True)
class Tensor:
    """An output, its data in row-major order."""

    name: str
    datatype: Datatype
    shape: Sequence[int]
    data: Sequence[str] | Sequence[float]

    @property
    def binary(self) -> bytes:
        if self.datatype == "FP32":
            return struct.pack(f"<{len(self.data)}f", *self.data)
        encoded = [text.encode() for text in cast("Sequence[str]", self.data)]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


# --- inputs -----------------------------------------------------------------------------------------------------------


def inputs_of(tensors: Sequence[InputTensor], tail: bytes, settings: Settings) -> list[Input]:
    """What the tensors ask, one input for each of the n rows; `tail` is what follows the JSON document.

    Raises `Invalid` with every problem, up to a number of them.
    """
    columns: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for index, tensor in enumerate(tensors):
        data, tail, wrong = _column(f"/inputs/{index}", tensor, tail, settings)
        columns[tensor.name] = data
        problems += wrong
    if tail and not problems:
        problems.append(Problem("", f"{len(tail)} bytes follow that belong to no tensor", "invalid"))
    if not problems and len({len(data) for data in columns.values()}) > 1:
        problems.append(Problem("/inputs", "differ in their number of strings", "invalid"))
    if len(columns) < len(tensors) or columns.keys() not in _KNOWN:
        said = "are not `text`, `text` with `text_pair`, or `question` with `context`"
        problems.append(Problem("/inputs", said, "invalid"))
    if problems:
        raise Invalid.of(problems[:_MOST_PROBLEMS])
    match columns:
        case {"question": questions, "context": contexts}:
            return [reading.Question(*one) for one in zip(questions, contexts, strict=True)]
        case {"text": texts, "text_pair": others}:
            return [reading.Pair(*one) for one in zip(texts, others, strict=True)]
        case _:
            return list(columns["text"])


_KNOWN = ({"text"}, {"text", "text_pair"}, {"question", "context"})


def _column(
    pointer: str, tensor: InputTensor, tail: bytes, settings: Settings
) -> tuple[list[str], bytes, list[Problem]]:
    """The strings of a tensor, what follows its bytes, and what is wrong with it."""
    if tensor.datatype != "BYTES":
        return [], tail, [Problem(f"{pointer}/datatype", "is not BYTES: an input is text", "invalid")]
    count = tensor.shape[0] if tensor.shape and tensor.shape[1:] in ([], [1]) else -1
    if count < 0:
        return [], tail, [Problem(f"{pointer}/shape", f"is not {_SHAPES}", "invalid")]
    if count == 0:
        return [], tail, [Problem(f"{pointer}/shape", "is empty", "empty_inputs")]
    if count > settings.max_predict_inputs:
        said = f"has {count} inputs; one call takes {settings.max_predict_inputs}"
        return [], tail, [Problem(f"{pointer}/shape", said, "too_many_inputs")]
    size = tensor.parameters.get("binary_data_size")
    try:
        if isinstance(size, int) and tensor.data is None:
            data: list[Any] = list(_strings(tail, size))
            tail = tail[size:]
        else:
            data = [one for row in tensor.data or [] for one in (row if isinstance(row, list) else [row])]
    except ValueError as error:
        return [], b"", [Problem(pointer, str(error), "invalid")]
    if len(data) != count:
        return [], tail, [Problem(f"{pointer}/data", f"has {len(data)} strings, and its shape says {count}", "invalid")]
    wrong = [_wrong(f"{pointer}/data/{row}", one, settings.max_text_chars) for row, one in enumerate(data)]
    return data, tail, [problem for problem in wrong if problem is not None]


def _wrong(pointer: str, given: object, limit: int) -> Problem | None:
    if not isinstance(given, str):
        return Problem(pointer, "is not a string", "invalid")
    return unreadable(pointer, given, limit)


def _strings(packed: bytes, size: int) -> Iterator[str]:
    """The strings in the first `size` bytes, each after its length. Raises `ValueError`."""
    if not 0 <= size <= len(packed):
        raise ValueError(f"says {size} bytes, and {len(packed)} are left")
    at = 0
    while at < size:
        start = at + 4
        end = start + int.from_bytes(packed[at:start], "little")
        if end > size:
            raise ValueError("has a string that is longer than what is left of its bytes")
        try:
            yield packed[start:end].decode()
        except UnicodeDecodeError:
            raise ValueError("has a string that is not UTF-8") from None
        at = end


# --- what a model takes and gives -------------------------------------------------------------------------------------


def taken(runtime: Runtime) -> list[TensorMetadata]:
    """Its inputs. Where a text may come with a second one or without, the second one is named too."""
    if runtime.kind == "question-answering":
        names = ["question", "context"]
    else:
        names = ["text", "text_pair"] if _takes(runtime, reading.Pair("", "")) else ["text"]
    return [TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in names]


def _takes(runtime: Runtime, item: Input) -> bool:
    try:
        runtime.check([item], Parameters())
    except Invalid:
        return False
    return True


def given(runtime: Runtime) -> list[TensorMetadata]:
    """Its outputs."""
    empty = outputs_of(runtime.kind, runtime.labels, [])
    return [
        TensorMetadata(name=one.name, datatype=one.datatype, shape=[-1 if size == 0 else size for size in one.shape])
        for one in empty
    ]


def outputs_of(kind: Kind, labels: Sequence[str], answers: Sequence[Answer], *, few: bool = False) -> list[Tensor]:
    """Answers as the tensors of their task; `labels` is the order of the columns of `scores`.

    `few`: the answers have the best labels only, K of them.
    """
    n = len(answers)
    match kind:
        case "text-classification":
            found = cast("Sequence[list[Label]]", answers)
            if few:
                best = [one for row in found for one in row]
                shape = [n, len(best) // n]
                return [
                    Tensor("label", "BYTES", shape, [one["label"] for one in best]),
                    Tensor("score", "FP32", shape, [one["score"] for one in best]),
                ]
            by_label = [{one["label"]: one["score"] for one in row} for row in found]
            return [
                Tensor("label", "BYTES", [n], [row[0]["label"] for row in found]),
                Tensor("score", "FP32", [n], [row[0]["score"] for row in found]),
                Tensor("scores", "FP32", [n, len(labels)], [row[label] for row in by_label for label in labels]),
            ]
        case "text-regression":
            numbers = [row[0]["score"] for row in cast("Sequence[list[Label]]", answers)]
            return [Tensor("score", "FP32", [n], numbers)]
        case "token-classification":
            return [Tensor("entities", "BYTES", [n], [_json(row) for row in answers])]
        case "question-answering":
            spans = [row if isinstance(row, list) else [row] for row in cast("Sequence[Span | list[Span]]", answers)]
            return [
                Tensor("answer", "BYTES", [n], [row[0]["answer"] for row in spans]),
                Tensor("score", "FP32", [n], [row[0]["score"] for row in spans]),
                Tensor("answers", "BYTES", [n], [_json(row) for row in spans]),
            ]
        case _:
            assert_never(kind)


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
