"""The device of a job, and the pass that only asks a network: no gradient, no dropout, no state.

Shapes: E encodings, S places of them in all, C numbers of a place.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.errors import JobFailure
from worker.data import Answers, Encoded, collate, in_order
from worker.outputs import Shape, answers_of

Precision = Literal["auto", "fp32", "bf16"]


# --- the device -------------------------------------------------------------------------------------------------------


def make_accelerator(device: Literal["cpu", "gpu"]) -> Accelerator:
    """The processes and the device of this job; torchrun's environment says how many processes there are.

    It never mixes precisions itself: Accelerate fixes one for the life of a process, and a teacher may be trained in
    another than its student. `train` and `predict_logits` open their own autocast. Raises `JobFailure` (`no_gpu`).
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise JobFailure(
            "this worker has no GPU that torch can use",
            code="no_gpu",
            hint='use "device": "auto" or "cpu", or start a worker on a machine with a GPU',
            pointer="/resources/device",
        )
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context of a forward pass. `auto` is bf16 where the hardware multiplies it fast, and fp32 elsewhere."""
    enabled = precision == "bf16" or (precision == "auto" and _fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


# --- answers ----------------------------------------------------------------------------------------------------------


def predict(
    network: nn.Module,
    encoded: Encoded,
    *,
    shape: Shape = "text",
    device: torch.device,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> Answers:
    """The raw logits of every encoding, float32, in their order.

    The network is moved to `device`, runs without dropout, and is left in the mode in which it came. `on_rows` is told
    after each batch how many rows are done, and may raise to stop. Raises `JobFailure` (`out_of_memory`).
    """
    was_training = network.training
    network.to(device).eval()
    parts: dict[int, Tensor] = {}
    plan = in_order(encoded.lengths, batch_tokens)
    done = 0
    try:
        with torch.inference_mode(), autocast(device, precision):
            for rows in plan:
                output = network(**to_device(device, known(network, collate(encoded, rows))))
                parts |= zip(rows.tolist(), answers_of(output, shape, encoded, rows), strict=True)
                done += len(rows)
                if on_rows is not None:
                    on_rows(done)
            # One copy from the device, not one for each encoding.
            together = torch.cat([parts[row] for row in range(len(encoded))]).cpu().numpy() if parts else None
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory() from error
        raise
    finally:
        network.train(was_training)
    starts = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(parts[row]) for row in range(len(encoded))], out=starts[1:])
    return Answers(np.empty((0, 0), np.float32) if together is None else together, starts)


def known(network: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of `inputs` that the network takes: some families have no segments."""
    taken = inspect.signature(network.forward).parameters
    return {name: tensor for name, tensor in inputs.items() if name in taken}


def to_device(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if device.type == "cpu":
        return tensors
    # Only a copy from pinned memory does not wait for the device.
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}


def is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory() -> JobFailure:
    return JobFailure(
        "there is not enough memory for this network and this many tokens at once",
        code="out_of_memory",
        hint="set micro_batch_tokens, lower max_length, or choose a smaller student",
        pointer="/schedule/micro_batch_tokens",
    )
