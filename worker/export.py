"""From a network in memory to a folder that serves: weights, tokenizer, ONNX at two precisions, golden answers.

In the order in which the recipe calls them:

    write_student   config.json, model.safetensors, the tokenizer's files: all that transformers needs
    to_onnx         student.onnx, fp32
    quantize        student.int8.onnx, the same network with 8-bit weights
    calibrate       another such file, its activations scaled once and for all
    check           that the exported network answers as the one in memory
    write_golden    golden.json: a few inputs with their answers, compared at every load
    write_report    report.json, and disagreements.json
    finish          manifest.json, last: from here on nothing changes

The model card, which `worker.card` writes and which names the report's hash, belongs into the folder between the last
two.

A teacher is exported in the same way, so that it is measured in the same way. This module measures nothing, and does
not know where the folder goes.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from pydantic import JsonValue
from tokenizers import Encoding
from torch import Tensor, nn

from models import inputs as reading
from models.artifacts import Manifest, Origin, write_manifest
from models.errors import JobFailure
from models.inputs import Input
from models.runtime import FILES, GOLDEN, Precision, Runtime, golden_document
from models.specs import ResolvedSpec, Task
from worker.folders import head_of, name_outputs

# Recent enough for LayerNormalization and Gelu as one operator each, which ONNX Runtime has fast kernels for.
_OPSET = 20
STRIDE = "limbeck_stride"
"""Where a question answerer's config.json says how many tokens two windows of a context share."""
_LARGEST_DIFFERENCE = 1e-3
_GOLDEN_EXAMPLES = 8


def write_student(
    folder: Path,
    network: Any,
    tokenizer: Any,
    *,
    task: Task,
    labels: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a transformers checkpoint: the `AutoModelFor…` class of `task` and `AutoTokenizer` open `folder`.

    `network` is a `PreTrainedModel` with the head of `task`; its config is given `labels` in the order of the logits,
    and whatever stands in `extra`. `tokenizer` is a fast tokenizer. Two networks that are equal give files that are
    equal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name_outputs(network.config, head_of(task), labels)
    for name, value in (extra or {}).items():
        setattr(network.config, name, value)
    network.config.name_or_path = ""  # else config.json says where on this machine the teacher was
    network.save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = getattr(task, "max_length", None)
    # Left behind by whoever encoded last; in the file they would change the student's hash.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(folder)


def to_onnx(network: Any, folder: Path, *, max_length: int) -> None:
    """Write `student.onnx`: fp32, any number of texts of any length up to `max_length` tokens.

    Inputs `input_ids` and `attention_mask`, and `token_type_ids` where the network has more than one type, int64
    (B, L). Output `logits`, float32 (B, C), or (B, L, C) where tokens are tagged; a span has `start_logits` and
    `end_logits` (B, L). `network` is left as it is. Raises `JobFailure` (code `export_failed`).
    """
    answers = _Answers(_on_cpu(network))
    names = answers.inputs
    length = min(12, max_length)
    # Two texts of different length: an example of one text, or without padding, would be taken for a constant.
    ids = torch.full((2, length), 1)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    example = dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_length)}
    with _quiet(), torch.inference_mode():
        try:
            program: Any = torch.onnx.export(
                answers,
                tuple(example.values()),
                input_names=list(names),
                output_names=list(answers.outputs),
                opset_version=_OPSET,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, axes),
                verbose=False,
            )
            onnx.save(_without_origins(program.model_proto), folder / FILES["fp32"])
        except Exception as error:  # the exporter's errors have no common root
            kind = network.config.model_type
            raise JobFailure(
                f"a network of the architecture {kind!r} could not be exported to ONNX",
                code="export_failed",
                hint="choose a student of another architecture; BERT, RoBERTa, DistilBERT and ELECTRA are tested",
            ) from error


def quantize(folder: Path) -> None:
    """Write `student.int8.onnx` of `student.onnx`: 8-bit weights, activations scaled text by text as they come.

    A scale for each output channel costs no time and agrees better with fp32 than one for each matrix. Weights use 7 of
    the 8 bits: with the eighth, processors without VNNI saturate their 16-bit sums, and the same student would answer
    differently from machine to machine. Raises `JobFailure` (code `quantization_failed`).
    """
    with _quiet(), _told_as_quantization():
        quantize_dynamic(
            folder / FILES["fp32"],
            folder / FILES["int8"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def calibrate(folder: Path, inputs: Sequence[Input], path: Path) -> None:
    """Write to `path` an int8 file of `student.onnx` whose activations are scaled by what `inputs` showed of them.

    `inputs` are training rows. Weights are as `quantize` has them. The smallest and largest value seen are the ends of
    a scale: percentiles and entropy agree less with fp32 (docs/decisions/0007). Raises `JobFailure` (code
    `quantization_failed`).
    """
    with _quiet(), _told_as_quantization():
        quantize_static(
            folder / FILES["fp32"],
            path,
            _Calibration(Runtime.open(folder, precision="fp32"), inputs),
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def check(network: Any, tokenizer: Any, folder: Path, inputs: Sequence[Input]) -> float:
    """The largest difference of a logit between `student.onnx` as served and `network`, over `inputs`, one at a time.

    `network` and `tokenizer` are those that `write_student` wrote. Raises `JobFailure` (code `export_mismatch`) if the
    two tokenizers cut an input differently, or if the difference is more than 0.001.
    """
    runtime = Runtime.open(folder, precision="fp32")
    theirs = runtime.tokenize(inputs)
    stride = getattr(network.config, STRIDE, 0)
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    ours = reading.encode(backend, inputs, max_length=runtime.max_length, stride=stride)
    if [[one.ids for one in windows] for windows in ours] != [[one.ids for one in windows] for windows in theirs]:
        raise _mismatch("the exported tokenizer cuts an input differently")
    answers = _Answers(_on_cpu(network))
    difference = 0.0
    for item, windows, found in zip(inputs, theirs, runtime.answers(inputs, theirs), strict=True):
        for encoding, values in zip(windows, found, strict=True):
            expected = answers.at(encoding, reading.places(item, encoding))
            known = ~np.isnan(values) | ~np.isnan(expected)  # not the places of words that were cut off
            apart = np.abs(values - expected)[known].max(initial=0.0)
            difference = max(difference, float(apart)) if np.isfinite(apart) else float("nan")
            if not difference <= _LARGEST_DIFFERENCE:  # also true for NaN
                raise _mismatch(f"a logit of the exported network differs by {difference:.3g}")
    return difference


def write_golden(folder: Path, inputs: Sequence[Input]) -> None:
    """Write `golden.json`: up to 8 of `inputs`, from the shortest to the longest, with their answers.

    The answers are those of the runtime that serves, on this machine, one input at a time, for each precision exported.
    """
    distinct = {reading.canonical(item): item for item in inputs}
    by_length = sorted(distinct, key=lambda text: (len(text), text))
    at = np.linspace(0, len(by_length) - 1, min(_GOLDEN_EXAMPLES, len(by_length))).astype(int)
    chosen = [distinct[by_length[index]] for index in at]
    runtimes: dict[Precision, Runtime] = {}
    for name, file in FILES.items():
        if (folder / file).exists():
            runtime = Runtime.open(folder, precision=name)
            runtimes[runtime.precision] = runtime
    _write_json(folder / GOLDEN, golden_document(runtimes, chosen))


def write_report(
    folder: Path, report: Mapping[str, Any], disagreements: Sequence[Mapping[str, Any]] | None = None
) -> Path:
    """Write `report.json`, whose path is returned, and `disagreements.json`: rows where student and teacher differ."""
    _write_json(folder / "report.json", report)
    if disagreements is not None:
        _write_json(folder / "disagreements.json", {"format": 1, "rows": list(disagreements)})
    return folder / "report.json"


def finish_teacher(folder: Path, inputs: Sequence[Input], task: Task) -> Manifest:
    """Make of a teacher's exported `folder` an artifact that serves at fp32 as a student does, golden answers included.

    Raises `ArtifactDamaged`, `StorageFailure` as `finish` does.
    """
    write_golden(folder, inputs)
    runtime = Runtime.open(folder, precision="fp32")
    runtime.check_golden()
    return write_manifest(
        folder,
        kind="teacher",
        task=task.kind,
        labels=runtime.labels,
        max_length=runtime.max_length,
        precision="fp32",
    )


def finish(
    folder: Path,
    spec: ResolvedSpec,
    *,
    served: Precision,
    data: Mapping[str, str],
    teachers: Sequence[Origin],
    bases: Sequence[Origin],
    seeds: Mapping[str, int],
    versions: Mapping[str, str],
    hardware: Mapping[str, JsonValue],
) -> Manifest:
    """Write the manifest, last; the folder is then an artifact, ready to be published.

    `data` has the SHA-256 of each split; the rest is what `worker.provenance` has found. Raises `ArtifactDamaged` if
    the folder does not give its own golden answers, `StorageFailure` if it cannot be written.
    """
    runtime = Runtime.open(folder, precision=served)
    runtime.check_golden()
    return write_manifest(
        folder,
        kind="student",
        task=spec.task.kind,
        labels=runtime.labels,
        max_length=runtime.max_length,
        precision=served,
        spec=spec.model_dump(mode="json"),
        data=data,
        teachers=teachers,
        bases=bases,
        seeds=seeds,
        versions=versions,
        hardware=hardware,
    )


# --- networks ---------------------------------------------------------------------------------------------------------


class _Answers(nn.Module):
    """A network that takes tensors by position and gives its logits as a tuple: the form that the exporter wants."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        types = getattr(network.config, "type_vocab_size", 0) or 0
        # A network with one type adds the same row to every token: the input could only be left out or be wrong.
        self.inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if types > 1 else 2]
        span = type(network).__name__.endswith("ForQuestionAnswering")
        self.outputs = ("start_logits", "end_logits") if span else ("logits",)
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, **given)
        return tuple(found[name] for name in self.outputs)

    @torch.inference_mode()
    def at(self, encoding: Encoding, places: NDArray[np.int32] | None) -> NDArray[np.float32]:
        """The logits (P, C) of one encoding at its `places`, NaN at -1; None: of the encoding as a whole, (1, C)."""
        ids = torch.tensor([encoding.ids])
        found = self(*(ids, torch.ones_like(ids), torch.tensor([encoding.type_ids]))[: len(self.inputs)])
        values = found[0][0].numpy() if len(found) == 1 else torch.stack([part[0] for part in found], dim=-1).numpy()
        if places is None:
            return np.array(values[None], np.float32)
        return np.where(places[:, None] >= 0, values[places], np.float32("nan"))


def _on_cpu(network: Any) -> Any:
    """A copy that may be changed: on the CPU, float32, in evaluation mode, with plain attention.

    Exported from the fused attention kernel the graph has more nodes and is no faster.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    network.set_attn_implementation("eager")
    return network


def _without_origins(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the exporter's notes on each node: half of a small file, and full of this machine's paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    return model


def _mismatch(what: str) -> JobFailure:
    return JobFailure(
        f"{what}, so the student that would be served is not the one that was trained",
        code="export_mismatch",
        hint="this is a fault of the exporter with this architecture: choose another one, and report it",
    )


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n", "utf-8")


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Gives the quantizer one encoding after the other, as the runtime feeds them."""

    def __init__(self, runtime: Runtime, inputs: Sequence[Input]) -> None:
        self._feeds = (runtime.feed(encoding) for windows in runtime.tokenize(inputs) for encoding in windows)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._feeds, None)


@contextmanager
def _told_as_quantization() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the quantizer's errors have no common root
        raise JobFailure(
            f"the network could not be brought to int8 ({type(error).__name__})", code="quantization_failed"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own insides. Errors are raised, not logged."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
