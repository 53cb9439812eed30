"""A published student, loaded: inputs in, answers out. tokenizers, ONNX Runtime and numpy; no torch.

The app serves with it and the worker measures with it, so that what is measured is what is served. It reads a folder:

    config.json              the kind of task (`architectures`, `problem_type`), the labels in the order of the logits
                             (`id2label`), and what /predict needs beside them (`limbeck_…`)
    tokenizer.json           the tokenizer; tokenizer_config.json says how many tokens an input may have
    student.onnx             fp32; student.int8.onnx is the same network with 8-bit weights
    manifest.json            which of the two is served; absent while the folder is still being made
    golden.json              a few inputs with their answers, which `check_golden` compares at every load

It does not know where the folder comes from, verifies no hashes, and makes no threads: whoever has several cores calls
one `Runtime` from several threads. P places of an encoding, C numbers of a place.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from models.answers import (
    Answer,
    Kind,
    Parameters,
    Raw,
    asked,
    entities_of,
    labels_of,
    spans_of,
    tokens_of,
)
from models.errors import ArtifactDamaged, Invalid, Problem
from models.inputs import Input, Pair, Question, Words, as_json, encode, of_json, separate_words

Precision = Literal["fp32", "int8"]
FILES: Mapping[str, str] = {"fp32": "student.onnx", "int8": "student.int8.onnx"}
GOLDEN = "golden.json"

_ARCHITECTURES: Mapping[str, Kind] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# How far a logit may be from the one on record, as a share of the largest on record. The same fp32 graph differs in the
# last bits between processors, and in int8 such a bit may round an activation to the next of its 256 steps.
_TOLERANCE: Mapping[str, float] = {"fp32": 2e-3, "int8": 0.05}
# Transformers' own for questions; a student says its own in `limbeck_stride`.
_LONGEST_STRIDE = 128


@dataclass(frozen=True)
class Runtime:
    """One student in memory. Safe to use from several threads at once."""

    kind: Kind
    multi_label: bool
    """Whether a text may have any number of the labels."""
    labels: tuple[str, ...]
    """In the order of the logits. A regression has one, the name of its number; question answering has none."""
    max_length: int
    precision: Precision
    bytes: int
    """Size of the network's file."""
    _pair: bool | None
    """Whether a text comes with a second one; None: either."""
    _stride: int
    _allow_none: bool
    _folder: Path
    _tokenizer: Tokenizer
    _session: onnxruntime.InferenceSession
    _inputs: tuple[str, ...]
    _outputs: tuple[str, ...]
    _windows: threading.Lock = field(default_factory=threading.Lock)
    """To cut a context into windows the tokenizer is set up for its question."""

    @classmethod
    def open(
        cls, folder: Path, *, precision: str | None = None, network: Path | None = None, threads: int = 1
    ) -> "Runtime":
        """Load `folder` at `precision`, by default the one that its manifest serves, or fp32 while it has no manifest.

        `network` is another file of the same network at that precision, by default the folder's own. `threads` is the
        number of threads that work on one text. One is best where texts come from several threads.
        Raises `ArtifactDamaged` if a file is absent or is not what it should be.
        """
        config = _read(folder / "config.json")
        manifest = _read(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
        chosen = _precision(precision or manifest.get("precision", "fp32"))
        kind = _kind(config)
        path = network or folder / FILES[chosen]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins while it waits takes the core from the thread that has the next text.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            names: dict[str, str] = {} if kind == "question-answering" else config["id2label"]
            labels = tuple(names[str(index)] for index in range(len(names)))
            max_length = int(_read(folder / "tokenizer_config.json")["model_max_length"])
            stride = int(config.get("limbeck_stride", min(max_length // 3, _LONGEST_STRIDE)))
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            size = path.stat().st_size
            if kind == "token-classification":
                separate_words(tokenizer)
            if kind != "question-answering":
                encode(tokenizer, [""], max_length=max_length)  # sets the tokenizer up, before threads share it
        except Exception as error:  # tokenizers and ONNX Runtime raise bare or private exceptions
            raise ArtifactDamaged(f"the student cannot be loaded at {chosen}") from error
        outputs = ("start_logits", "end_logits") if kind == "question-answering" else ("logits",)
        if not {*outputs} <= {node.name for node in session.get_outputs()}:
            raise ArtifactDamaged(f"the network is not one for {kind}")
        return cls(
            kind=kind,
            multi_label=kind == "text-classification" and config.get("problem_type") == "multi_label_classification",
            labels=labels,
            max_length=max_length,
            precision=chosen,
            bytes=size,
            _pair=config.get("limbeck_pair"),
            _stride=stride,
            _allow_none=config.get("limbeck_allow_none") is True,
            _folder=folder,
            _tokenizer=tokenizer,
            _session=session,
            _inputs=tuple(node.name for node in session.get_inputs()),
            _outputs=outputs,
        )

    def check(self, inputs: Sequence[Input], parameters: Parameters, *, single: bool = False) -> None:
        """Raise `Invalid` where this student takes no such inputs (`wrong_input`) or parameters (`unknown_parameter`).

        All `inputs` are of one kind; `single` says that they came as one and not as a list.
        """
        problems = parameters.problems(self.kind)
        wrong = next((row for row, item in enumerate(inputs) if not self._takes(item)), None)
        if wrong is not None:
            pointer = "/inputs" if single else f"/inputs/{wrong}"
            problems.append(Problem(pointer, f"this student answers for {self._expects()}", "wrong_input"))
        if problems:
            raise Invalid.of(problems)

    def tokenize(self, inputs: Sequence[Input]) -> list[list[Encoding]]:
        """For each input its encodings: one, or for a question one for each window over its context."""
        if self.kind == "question-answering":
            with self._windows:
                return encode(self._tokenizer, inputs, max_length=self.max_length, stride=self._stride)
        words = self.kind == "token-classification"
        return encode(self._tokenizer, inputs, max_length=self.max_length, offsets=words)

    def answers(
        self, inputs: Sequence[Input], encodings: Sequence[Sequence[Encoding]] | None = None
    ) -> list[list[Raw]]:
        """For each input and each of its encodings the raw logits at its places, (P, C). Runs on the calling thread.

        A text as a whole has one place, (1, C). Of `Words` each word is one, NaN if it was cut off; of a text whose
        words are asked every token; of a question the first token, which stands for "no answer", and each of the
        context, with two numbers: where the answer begins and where it ends.

        One text at a time: on a CPU a padded batch costs more than its texts alone, and int8 activations are scaled by
        the largest value in a batch, so that a text's answer would depend on its neighbours.
        """
        encodings = self.tokenize(inputs) if encodings is None else encodings
        return [
            [self._answer(item, encoding) for encoding in windows]
            for item, windows in zip(inputs, encodings, strict=True)
        ]

    def decode(
        self, item: Input, encodings: Sequence[Encoding], raw: Sequence[Raw], parameters: Parameters | None = None
    ) -> Answer:
        """The answer to one input, of its encodings and their logits as `answers` gives them."""
        parameters = parameters or Parameters()
        match self.kind:
            case "text-classification":
                function = parameters.function_to_apply or ("sigmoid" if self.multi_label else "softmax")
                return labels_of(raw[0][0], self.labels, function, parameters.top_k)
            case "text-regression":
                return labels_of(raw[0][0], self.labels, "none")
            case "token-classification":
                if not isinstance(item, str | Words):
                    raise TypeError("words are asked of a text")
                strategy = parameters.aggregation_strategy or "simple"
                if strategy == "none" and isinstance(item, str):
                    return tokens_of(item, encodings[0], raw[0], self.labels)
                return entities_of(item, encodings[0], raw[0], self.labels, strategy)
            case "question-answering":
                if not isinstance(item, Question):
                    raise TypeError("an answer needs a question")
                top_k = parameters.top_k or 1
                spans = spans_of(item, encodings, raw, top_k=top_k, allow_none=self._allow_none)
                return spans if top_k > 1 else spans[0]
            case _:
                assert_never(self.kind)

    def predict(self, inputs: Sequence[Input], **parameters: Any) -> list[Answer]:
        """For each input its answer. Raises `Invalid` for an input or a parameter that cannot be."""
        chosen = Parameters.parse(parameters)
        self.check(inputs, chosen)
        encodings = self.tokenize(inputs)
        raw = self.answers(inputs, encodings)
        return [self.decode(*one, chosen) for one in zip(inputs, encodings, raw, strict=True)]

    def check_golden(self) -> None:
        """Compare this machine's answers with those on record. Raises `ArtifactDamaged` if they are not the same.

        A logit may differ by a small share of the largest one on record, and the best one only where the two best are
        about as close as that.
        """
        document = _read(self._folder / GOLDEN)
        try:
            examples = document["examples"]
            inputs = [of_json(example["input"]) for example in examples]
            expected = [self._on_record(example) for example in examples]
            same_labels = document.get("labels") in (None, list(self.labels)) and all(
                example["label"][self.precision] == self.labels[int(windows[0][0].argmax())]
                for example, windows in zip(examples, expected, strict=True)
                if "label" in example
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ArtifactDamaged(f"golden.json has no answers at {self.precision}") from error
        try:
            self.check(inputs, Parameters())
        except Invalid as error:
            raise ArtifactDamaged("golden.json has inputs of another task") from error
        largest = max((float(np.abs(one).max(initial=0.0)) for windows in expected for one in windows), default=0.0)
        allowed = _TOLERANCE[self.precision] * max(1.0, largest)
        found = self.answers(inputs)
        if not same_labels or not all(_close(*pair, allowed) for pair in zip(found, expected, strict=True)):
            raise ArtifactDamaged(
                "the student does not give the answers on record for its golden inputs",
                hint="the file is damaged, or this machine's ONNX Runtime computes something else",
            )

    def _answer(self, item: Input, encoding: Encoding) -> Raw:
        found: list[NDArray[np.float32]] = self._session.run(list(self._outputs), self.feed(encoding))
        match self.kind:
            case "text-classification" | "text-regression":
                return found[0]
            case "token-classification":
                at = asked(item, encoding)
                return np.where((at >= 0)[:, None], found[0][0][at], np.float32(np.nan))
            case "question-answering":
                return np.stack([part[0] for part in found], axis=1)[asked(item, encoding)]
            case _:
                assert_never(self.kind)

    def feed(self, encoding: Encoding) -> dict[str, NDArray[np.int64]]:
        """What ONNX Runtime is given of one encoding: each of the network's inputs (1, L)."""
        feed = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        return {name: np.array([feed[name]], np.int64) for name in self._inputs}

    def _takes(self, item: Input) -> bool:
        match self.kind:
            case "text-classification" | "text-regression":
                return (isinstance(item, str) and self._pair is not True) or (
                    isinstance(item, Pair) and self._pair is not False
                )
            case "token-classification":
                return isinstance(item, str | Words)
            case "question-answering":
                return isinstance(item, Question)
            case _:
                assert_never(self.kind)

    def _expects(self) -> str:
        if self.kind == "question-answering":
            return 'questions: {"question": "…", "context": "…"}'
        if self._pair and self.kind != "token-classification":
            return 'pairs: {"text": "…", "text_pair": "…"}'
        return "single texts, such as a string"

    def _on_record(self, example: Mapping[str, Any]) -> list[Raw]:
        """The logits that one of `golden.json` has; before format 2 an input was a text as a whole."""
        windows = example["answers"][self.precision] if "answers" in example else [[example["logits"][self.precision]]]
        width = len(self.labels) or 2
        return [np.array(window, np.float32).reshape(-1, width) for window in windows]


def golden_document(runtimes: Mapping[Precision, Runtime], inputs: Sequence[Input]) -> dict[str, Any]:
    """What `check_golden` reads: `inputs` with what each of `runtimes`, the precisions of one student, says of them."""
    # As /predict takes them: a row of words is one text.
    asked_for = [of_json(as_json(item)) for item in inputs]
    found = {precision: runtime.answers(asked_for) for precision, runtime in runtimes.items()}
    labels = next((list(runtime.labels) for runtime in runtimes.values()), [])
    examples = [
        {
            "input": as_json(item),
            "answers": {precision: [_plain(window) for window in answers[row]] for precision, answers in found.items()},
        }
        for row, item in enumerate(asked_for)
    ]
    return {"format": 2, "labels": labels, "examples": examples}


def _plain(logits: Raw) -> list[list[float]]:
    return [[round(float(value), 6) for value in row] for row in logits]


def _close(found: Sequence[Raw], expected: Sequence[Raw], allowed: float) -> bool:
    """Whether no number of any window is further than `allowed` from the one on record; NaN is."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and bool((np.abs(one - other) <= allowed).all())
        for one, other in zip(found, expected, strict=True)
    )


def _kind(config: Mapping[str, Any]) -> Kind:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = next((kind for end, kind in _ARCHITECTURES.items() if isinstance(name, str) and name.endswith(end)), None)
    if kind is None:
        raise ArtifactDamaged("config.json names no architecture that this version serves")
    return "text-regression" if kind == "text-classification" and config.get("problem_type") == "regression" else kind


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
