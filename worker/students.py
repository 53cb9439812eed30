"""Builds a student before its training: from the teacher's own weights, of random ones, or from another checkpoint.

Most of a small encoder's parameters are its embedding, so a student may keep only the tokens that its training rows
use; its tokenizer is then rebuilt to match (`worker.vocabulary`). It may also be narrower (`worker.narrowing`).

Does not know datasets, objectives or training.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel

from models import inputs as reading
from models.errors import JobFailure
from models.inputs import Input
from models.specs import FreshStudent, PretrainedStudent, StudentFromTeacher
from models.specs import Student as StudentSpec
from worker.folders import Head, check_positions, class_of, name_outputs, open_folder, positions
from worker.narrowing import check_narrower, narrow
from worker.vocabulary import Vocabulary, no_smaller, shrink, texts_of

_SAMPLED = 128
"""Training inputs from which a narrower student learns what is important in its teacher."""
_SAMPLED_TOKENS = 128


class Original(Protocol):
    """What a student is made from: `teachers.OpenTeacher` is one."""

    @property
    def network(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> Any: ...


@dataclass(frozen=True)
class Student:
    """A network with a head, in evaluation mode, float32, on the CPU, and its fast tokenizer."""

    network: PreTrainedModel
    tokenizer: Any
    kept: NDArray[np.int64] | None
    """(V,) the id that each of its tokens has for the teacher; None where the two cut a text in different ways."""


def build(
    spec: StudentSpec,
    teacher: Original | None,
    train_inputs: Sequence[Input],
    labels: Sequence[str],
    *,
    head: Head,
    seed: int,
    find_folder: Callable[[str], Path],
    max_length: int | None = None,
    pointer: str = "/stages/0/student",
) -> Student:
    """The student that `spec` describes, with a `head` for `labels`, in their order.

    `teacher` has that head already; it may be None for a pretrained student. `train_inputs` decide which tokens a
    smaller vocabulary keeps, and which parts a narrower network. `find_folder` turns the reference of a pretrained
    student into a checked folder; its network must be able to read `max_length` tokens. The same arguments give the
    same weights; the teacher and the global random state are left as they were. The codes of the `JobFailure` are
    impossible_layers, impossible_student, narrower_unsupported, vocabulary_too_small, vocabulary_unsupported,
    architecture_unsupported, no_network, max_length_too_long, and those of opening a folder.
    """
    match spec:
        case StudentFromTeacher():
            original = _needed(teacher, spec.kind, pointer)
            chosen = _chosen_layers(spec, original.network, pointer)
            vocabulary = _vocabulary(spec.vocabulary, original, train_inputs, pointer)
            network = _narrowed(spec, original, train_inputs, max_length, pointer)
            return _from_teacher(network, chosen, vocabulary, pointer)
        case FreshStudent():
            original = _needed(teacher, spec.kind, pointer)
            vocabulary = _vocabulary(spec.vocabulary, original, train_inputs, pointer)
            return _fresh(spec, original, vocabulary, labels, head, seed)
        case PretrainedStudent():
            opened = open_folder(find_folder(spec.model), labels, head=head, seed=seed, pointer=f"{pointer}/model")
            if max_length is not None:
                check_positions(opened.network, max_length, "student")
            same = teacher is not None and teacher.tokenizer.get_vocab() == opened.tokenizer.get_vocab()
            kept = np.arange(len(opened.tokenizer), dtype=np.int64) if same else None
            return Student(opened.network, opened.tokenizer, kept)
        case _:
            assert_never(spec)


def _needed(teacher: Original | None, kind: str, pointer: str) -> Original:
    if teacher is None:
        raise JobFailure(
            f"a {kind} student is made from a network, and the teacher has none",
            code="no_network",
            hint="choose a student of the kind pretrained",
            pointer=f"{pointer}/kind",
        )
    return teacher


def parameters(network: nn.Module) -> tuple[int, int]:
    """How many parameters there are: all, and those outside of embedding tables (tokens, positions, segments)."""
    every = {id(parameter): parameter.numel() for parameter in network.parameters()}
    tables = {
        id(parameter): parameter.numel()
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return sum(every.values()), sum(every.values()) - sum(tables.values())


# --- layers -----------------------------------------------------------------------------------------------------------


def uniform_layers(teacher: int, student: int) -> list[int]:
    """Which of `teacher` layers (0-based) a student of `student` layers takes: TinyBERT's uniform map (1909.10351).

    `state(j) = ⌊j·N/M + ½⌋`, `layer(j) = state(j+1) − 1`: 12 → 4 gives 2, 5, 8, 11. Raises `ValueError` if M > N.
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"{student} layers cannot be taken from {teacher}")
    # ⌊j·N/M + ½⌋ in integers.
    return [(2 * (j + 1) * teacher + student) // (2 * student) - 1 for j in range(student)]


def _chosen_layers(spec: StudentFromTeacher, network: PreTrainedModel, pointer: str) -> list[int]:
    there = int(network.config.num_hidden_layers)
    if spec.layers is None:
        return list(range(there))
    if isinstance(spec.layers, int):
        if spec.layers > there:
            raise JobFailure(
                f"the teacher has {there} layers, and {spec.layers} are asked for",
                code="impossible_layers",
                pointer=f"{pointer}/layers",
            )
        return uniform_layers(there, spec.layers)
    wrong = [layer for layer in spec.layers if layer >= there]
    if wrong:
        raise JobFailure(
            f"the teacher has the layers 0 to {there - 1}, and {wrong[0]} is asked for",
            code="impossible_layers",
            pointer=f"{pointer}/layers",
        )
    return list(spec.layers)


def _layer_list(network: PreTrainedModel, pointer: str) -> str:
    """The name of the module list that holds the layers."""
    there = network.config.num_hidden_layers
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == there and len({type(layer) for layer in module}) == 1
    ]
    # Lists inside of a layer (a mixture's experts) are not the layers, however many they are.
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found if other != name)]
    if len(outer) != 1:
        raise _unsupported(network, pointer)
    return str(outer[0])


def _unsupported(network: PreTrainedModel, pointer: str) -> JobFailure:
    return JobFailure(
        f"a student cannot be cut out of a {network.config.model_type!r} network",
        code="architecture_unsupported",
        hint="use a student of the kind pretrained or fresh; BERT, RoBERTa, DistilBERT and ELECTRA can be cut",
        pointer=f"{pointer}/kind",
    )


def _from_teacher(network: PreTrainedModel, chosen: Sequence[int], vocabulary: Vocabulary, pointer: str) -> Student:
    layers = _layer_list(network, pointer)
    embedding = network.get_input_embeddings()
    table = next(name for name, module in network.named_modules() if module is embedding) + ".weight"
    settings = network.config.to_dict()
    # Families with layers of several kinds name the kind of each.
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(settings.get(name), list) and len(settings[name]) == network.config.num_hidden_layers:
            settings[name] = [settings[name][layer] for layer in chosen]
    depth = getattr(network.config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    settings |= {depth: len(chosen), "vocab_size": len(vocabulary.kept), **vocabulary.special_ids(settings)}
    weights: dict[str, Tensor] = {}
    place = {layer: index for index, layer in enumerate(chosen)}
    for name, tensor in network.state_dict().items():
        target = name
        if name.startswith(f"{layers}."):
            layer, _, rest = name.removeprefix(f"{layers}.").partition(".")
            if int(layer) not in place:
                continue
            target = f"{layers}.{place[int(layer)]}.{rest}"
        weights[target] = tensor[torch.from_numpy(vocabulary.kept)] if name == table else tensor
    try:
        with torch.random.fork_rng(devices=[]):
            student = type(network)(type(network.config).from_dict(settings))
        student.load_state_dict({name: tensor.detach().to("cpu", torch.float32) for name, tensor in weights.items()})
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _unsupported(network, pointer) from error
    return Student(student.eval(), vocabulary.tokenizer, vocabulary.kept)


def _fresh(
    spec: FreshStudent, teacher: Original, vocabulary: Vocabulary, labels: Sequence[str], head: Head, seed: int
) -> Student:
    config = BertConfig(
        vocab_size=len(vocabulary.kept),
        num_hidden_layers=spec.layers,
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=positions(teacher.network) or 512,
        pad_token_id=vocabulary.tokenizer.pad_token_id,
    )
    name_outputs(config, head, labels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
        network = class_of(head).from_config(config)
    return Student(network.eval(), vocabulary.tokenizer, vocabulary.kept)


# --- width ------------------------------------------------------------------------------------------------------------


def _narrowed(
    spec: StudentFromTeacher, teacher: Original, inputs: Sequence[Input], max_length: int | None, pointer: str
) -> PreTrainedModel:
    """The teacher's network at the widths that `spec` asks for; the teacher's own where it asks for none."""
    widths = check_narrower(teacher.network, spec.hidden_size, spec.heads, spec.intermediate_size, pointer=pointer)
    if widths is None:
        return teacher.network
    places = np.unique(np.linspace(0, max(len(inputs) - 1, 0), min(_SAMPLED, len(inputs))).astype(int))
    backend = copy.deepcopy(teacher.tokenizer.backend_tokenizer)
    length = min(max_length or _SAMPLED_TOKENS, _SAMPLED_TOKENS)
    found = reading.encode(backend, [inputs[place] for place in places], max_length=length)
    typed = (getattr(teacher.network.config, "type_vocab_size", 0) or 0) > 1
    batches = [
        {"input_ids": torch.tensor([one.ids]), **({"token_type_ids": torch.tensor([one.type_ids])} if typed else {})}
        for windows in found
        for one in windows[:1]
    ]
    return narrow(teacher.network, batches, widths, pointer=pointer)


# --- vocabulary -------------------------------------------------------------------------------------------------------


def _vocabulary(size: int | None, teacher: Original, inputs: Sequence[Input], pointer: str) -> Vocabulary:
    rows = int(teacher.network.get_input_embeddings().num_embeddings)
    if size is None or size >= min(rows, len(teacher.tokenizer)):
        return Vocabulary(teacher.tokenizer, np.arange(rows, dtype=np.int64))
    vocabulary = shrink(teacher.tokenizer, texts_of(inputs), size, pointer=f"{pointer}/vocabulary")
    # RoBERTa's kind counts positions from the padding id on, so that id may not move.
    moved = vocabulary.tokenizer.pad_token_id != teacher.tokenizer.pad_token_id
    counted = any(
        name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
        for name, module in teacher.network.named_modules()
    )
    if moved and counted:
        raise no_smaller("its positions are counted from a padding id that would move", f"{pointer}/vocabulary")
    return vocabulary
