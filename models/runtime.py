"""A published student, loaded: texts in, labels out. tokenizers, ONNX Runtime and numpy; no torch.

The app serves with it and the worker measures with it, so that what is measured is what is served. It reads a folder:

    config.json              the labels, in the order of the logits (`id2label`)
    tokenizer.json           the tokenizer; tokenizer_config.json says how many tokens a text may have
    student.onnx             fp32; student.int8.onnx is the same network with 8-bit weights
    manifest.json            which of the two is served; absent while the folder is still being made
    golden.json              a few inputs with their answers, which `check_golden` compares at every load

It does not know where the folder comes from, verifies no hashes, and makes no threads: whoever has several cores calls
one `Runtime` from several threads.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Encoding, Tokenizer

from models.errors import ArtifactDamaged, Invalid, Problem

Precision = Literal["fp32", "int8"]
FILES: Mapping[str, str] = {"fp32": "student.onnx", "int8": "student.int8.onnx"}
GOLDEN = "golden.json"

# How far a logit may be from the one on record, as a share of the largest on record. The same fp32 graph differs in the
# last bits between processors, and in int8 such a bit may round an activation to the next of its 256 steps.
_TOLERANCE: Mapping[str, float] = {"fp32": 2e-3, "int8": 0.05}


class Label(TypedDict):
    """One answer. `score` is what `function_to_apply` made of the logit."""

    label: str
    score: float


class Parameters(BaseModel):
    """What a caller of /predict may choose."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    top_k: int | None = Field(None, ge=1)
    """The best so many labels; null: all."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """What makes a score of a logit; null: what the task calls for, softmax for one label of several."""

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> "Parameters":
        """Raises `Invalid`: code `unknown_parameter` for a name, `invalid_parameter` for a value."""
        try:
            return cls.model_validate(dict(document or {}))
        except ValidationError as error:
            raise Invalid.of(
                [_problem(detail["type"], detail["loc"], detail["msg"]) for detail in error.errors()]
            ) from error


def _problem(kind: str, where: tuple[int | str, ...], message: str) -> Problem:
    name = str(where[0])[:80] if where else ""
    pointer = "/parameters/" + name.replace("~", "~0").replace("/", "~1")
    if kind == "extra_forbidden":
        known = ", ".join(Parameters.model_fields)
        return Problem(pointer, f"{name!r} is not a parameter of this task; it has {known}", "unknown_parameter")
    return Problem(pointer, message, "invalid_parameter")


@dataclass(frozen=True)
class Runtime:
    """One student in memory. Safe to use from several threads at once: nothing in it changes after `open`."""

    labels: tuple[str, ...]
    max_length: int
    precision: Precision
    bytes: int
    """Size of the network's file."""
    _folder: Path
    _tokenizer: Tokenizer
    _session: onnxruntime.InferenceSession
    _inputs: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, *, precision: str | None = None, threads: int = 1) -> "Runtime":
        """Load `folder` at `precision`, by default the one that its manifest serves, or fp32 while it has no manifest.

        `threads` is the number of threads that work on one text. One is best where texts come from several threads.
        Raises `ArtifactDamaged` if a file is absent or is not what it should be.
        """
        config = _read(folder / "config.json")
        manifest = _read(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
        chosen = _precision(precision or manifest.get("precision", "fp32"))
        path = folder / FILES[chosen]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins while it waits takes the core from the thread that has the next text.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            names: dict[str, str] = config["id2label"]
            labels = tuple(names[str(index)] for index in range(len(names)))
            max_length = int(_read(folder / "tokenizer_config.json")["model_max_length"])
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            size = path.stat().st_size
        except Exception as error:  # tokenizers and ONNX Runtime raise bare or private exceptions
            raise ArtifactDamaged(f"the student cannot be loaded at {chosen}") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        inputs = tuple(node.name for node in session.get_inputs())
        return cls(labels, max_length, chosen, size, folder, tokenizer, session, inputs)

    def tokenize(self, inputs: Sequence[str]) -> list[Encoding]:
        """One encoding for each text: special tokens included, cut at `max_length`, not padded."""
        # The batch call lets go of the interpreter's lock, which `encode` does not, and makes no offsets.
        return self._tokenizer.encode_batch_fast(list(inputs))

    def logits(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """(N, C), in the order of `encodings`. Runs on the calling thread.

        One text at a time: on a CPU a padded batch costs more than its texts alone, and int8 activations are scaled by
        the largest value in a batch, so that a text's answer would depend on its neighbours.
        """
        logits = np.empty((len(encodings), len(self.labels)), np.float32)
        for row, encoding in enumerate(encodings):
            logits[row] = self._session.run(["logits"], self._feed(encoding))[0][0]
        return logits

    def decode(self, logits: NDArray[np.float32], parameters: Parameters | None = None) -> list[list[Label]]:
        """For each row of `logits` (N, C) its labels, best first; equal scores in the order of the labels."""
        parameters = parameters or Parameters()
        scores = _scores(logits, parameters.function_to_apply)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : parameters.top_k]
        return [
            [Label(label=self.labels[index], score=float(row[index])) for index in best]
            for row, best in zip(scores, order, strict=True)
        ]

    def predict(
        self, inputs: Sequence[str], top_k: int | None = None, function_to_apply: str | None = None
    ) -> list[list[Label]]:
        """For each text its labels, best first. Raises `Invalid` for a parameter that cannot be."""
        parameters = Parameters.parse({"top_k": top_k, "function_to_apply": function_to_apply})
        return self.decode(self.logits(self.tokenize(inputs)), parameters)

    def check_golden(self) -> None:
        """Compare this machine's answers with those on record. Raises `ArtifactDamaged` if they are not the same.

        A logit may differ by a small share of the largest one on record, and the label only where the two best are
        about as close as that.
        """
        document = _read(self._folder / GOLDEN)
        try:
            examples = document["examples"]
            texts = [str(example["input"]) for example in examples]
            best = np.array([self.labels.index(example["label"][self.precision]) for example in examples], np.int64)
            expected = np.array([example["logits"][self.precision] for example in examples], np.float32)
            expected = expected.reshape(len(texts), len(self.labels))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactDamaged(f"golden.json has no answers at {self.precision}") from error
        logits = self.logits(self.tokenize(texts))
        allowed = _TOLERANCE[self.precision] * max(1.0, float(np.abs(expected).max(initial=0.0)))
        behind = logits.max(axis=1) - np.take_along_axis(logits, best[:, None], axis=1)[:, 0]
        # Written so that NaN fails both.
        if not (np.abs(logits - expected) <= allowed).all() or not (behind <= 2 * allowed).all():
            raise ArtifactDamaged(
                "the student does not give the answers on record for its golden inputs",
                hint="the file is damaged, or this machine's ONNX Runtime computes something else",
            )

    def _feed(self, encoding: Encoding) -> dict[str, NDArray[np.int64]]:
        feed = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        return {name: np.array([feed[name]], np.int64) for name in self._inputs}


def _scores(logits: NDArray[np.float32], function: str | None) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    if function == "none":
        return values
    if function == "sigmoid":
        # The form whose exponent is never positive cannot overflow.
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1.0, small) / (1.0 + small)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _precision(name: object) -> Precision:
    if name == "fp32" or name == "int8":  # noqa: PLR1714 - the type checker narrows this one
        return name
    raise ArtifactDamaged("the manifest serves a precision that this version does not know")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactDamaged(f"{path.name} is absent or cannot be read") from error
    if not isinstance(document, dict):
        raise ArtifactDamaged(f"{path.name} is not a JSON object")
    return document
