"""The training loop, and the pass that only asks a network for its logits.

    for every epoch, for every batch of it:
        seed this step · for every micro-batch: forward, losses over the batch's true counts, backward
        add up the gradients of all processes · clip · learning rate · AdamW, unless something is not finite
    after every epoch: validate, keep the best weights, stop when patience ends

A step's randomness is a pure function of (seed, unit, step, process) and the order of the rows one of (seed, epoch), so
a resumed run needs no random state and equals an unbroken one bit for bit on the CPU, and validation cannot disturb it.

With several processes each takes every n-th row of a batch. Gradients are added up once a step, over counts that every
process knows beforehand, so that the result is that of one process (up to the order of additions, and to dropout).

Knows no task and no teacher: rows of token ids with targets and, where an objective asks for them, a teacher's logits.

Shapes: N rows, B rows of a micro-batch, C classes.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, assert_never

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from models.errors import JobFailure
from models.specs import Objective, Reserved, Schedule
from worker.checkpoints import Checkpoint, Checkpoints
from worker.data import Encoded, batches, collate, in_order, micro_batches
from worker.objectives import active, needs_teacher, total, valid_rows
from worker.protocol import Report, Stopped, StopReason

Precision = Literal["auto", "fp32", "bf16"]

_REPORT_EVERY = 10
# Writing checkpoints may take a fiftieth of the time; one at an epoch's end, a tenth of the epoch.
_CHECKPOINT_SHARE, _EPOCH_CHECKPOINT_SHARE = 0.02, 0.1
# After a CUDA out-of-memory error the network gets a quarter of the tokens at once: a half rarely helps.
_SMALLER = 4


@dataclass(frozen=True)
class TrainingSet:
    encoded: Encoded
    targets: Tensor
    """(N,) int64 class numbers, -1 where a row has no label."""
    teacher_logits: Tensor | None = None
    """(N, C) float32, raw."""


@dataclass(frozen=True)
class Outcome:
    steps: int
    epochs_run: int
    best_epoch: int
    """0-based."""
    best_score: float
    seconds: float
    """Spent in training, validation included, over all attempts."""
    examples_per_second: float


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


# --- logits -----------------------------------------------------------------------------------------------------------


def predict_logits(
    network: nn.Module,
    encoded: Encoded,
    *,
    device: torch.device,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, C) float32 logits on the CPU, in the order of the rows.

    The network is moved to `device`, runs without dropout, and is left in the mode in which it came. `on_rows` is told
    after each batch how many rows are done, and may raise to stop. Raises `JobFailure` (`out_of_memory`).
    """
    was_training = network.training
    network.to(device).eval()
    parts: list[Tensor] = []
    plan = in_order(encoded.lengths, batch_tokens)
    done = 0
    try:
        with torch.inference_mode(), autocast(device, precision):
            for rows in plan:
                parts.append(network(**_to(device, collate(encoded, rows))).logits.float())
                done += len(rows)
                if on_rows is not None:
                    on_rows(done)
            if not parts:
                return torch.empty(0, 0)
            together = torch.cat(parts).cpu()
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise _out_of_memory() from error
        raise
    finally:
        network.train(was_training)
    # Outside inference mode, so that the result may be used in training.
    logits = torch.empty(together.shape)
    logits[torch.from_numpy(np.concatenate(plan))] = together
    return logits


def _to(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if device.type == "cpu":
        return tensors
    # Only a copy from pinned memory does not wait for the device.
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    network: nn.Module,
    data: TrainingSet,
    validate: Callable[[nn.Module], dict[str, float]],
    objectives: Sequence[Objective],
    schedule: Schedule,
    *,
    seed: int,
    unit: str,
    arm: str,
    stage: int,
    phase: int,
    checkpoints: Checkpoints,
    report: Report,
    accelerator: Accelerator,
    checkpoint_seconds: float,
    on_progress: Callable[[int, int], None],
    deadline: float | None = None,
    score: str = "accuracy",
    max_steps: int | None = None,
) -> Outcome:
    """Trains `network` in place; at return it holds the weights of its best epoch, in evaluation mode.

    `validate` scores the network after each epoch; `score` names what is to be high. `unit` names the checkpoints: a
    unit that is finished is only read back, one that was begun goes on. `on_progress(done, total)` counts optimizer
    steps; the total is an estimate, since epochs differ by a few batches. `deadline` is in `time.monotonic()`.
    `max_steps`: exactly so many steps, round and round the rows, in place of the schedule's epochs and patience; a
    control arm gets its twin's number.

    Metrics go to `report` under (arm, stage, phase), at the first step and every tenth: `loss`, one for each kind of
    objective, `learning_rate`, `examples_per_second`; and `validation_…` after each epoch.

    Raises `JobFailure`: `diverged` (the optimizer has not taken the step), `out_of_memory` (with a smaller micro-batch
    too), `time_limit`, `no_labels`. Raises `Stopped` with a checkpoint written, when `report` was asked to stop.
    """
    network.to(accelerator.device)
    done = checkpoints.finished(unit)
    if done is not None:
        network.load_state_dict(done.tensors)
        network.eval()
        return Outcome(**done.state)

    run = _Run(network, data, active(objectives), schedule, accelerator, seed=seed, unit=unit, max_steps=max_steps)
    _resume(run, checkpoints, report, unit)
    saving = _Saving(run, checkpoints, report, unit=unit, seconds=checkpoint_seconds)
    metrics = _Metrics(run, report, arm, stage, phase)

    network.train()
    while not run.over:
        plan = run.plan()
        for rows in plan[run.at.batch :]:
            if run.at.step == max_steps:
                break
            verdict = _verdict(run, report, deadline)
            if verdict == "time_limit":
                raise JobFailure(
                    f"the time for training was over after {run.at.step} steps",
                    code="time_limit",
                    hint="raise max_seconds, or train for fewer epochs or on fewer rows",
                    pointer="/max_seconds",
                )
            if verdict is not None:
                saving.save()
                raise Stopped(verdict)
            rate = run.step(rows, *run.share_done(len(plan)))
            metrics.after_step(rate)
            if accelerator.is_main_process:
                on_progress(run.at.step, run.total_steps(len(plan)))
            saving.after_step()
        network.eval()
        scores = validate(network)
        network.train()
        metrics.after_epoch(scores)
        run.finish_epoch(scores[score])
        saving.after_epoch()

    network.load_state_dict(run.best)
    network.eval()
    outcome = run.outcome()
    if accelerator.is_main_process:
        checkpoints.finish(unit, run.best, asdict(outcome))
    accelerator.wait_for_everyone()
    return outcome


def _resume(run: "_Run", checkpoints: Checkpoints, report: Report, unit: str) -> None:
    begun = checkpoints.latest(unit)
    if begun is None:
        return
    run.restore(begun)
    if run.accelerator.is_main_process:
        report.event("resumed", f"Training of {unit} goes on from step {begun.step}.", unit=unit, step=begun.step)


def _verdict(run: "_Run", report: Report, deadline: float | None) -> StopReason | Literal["time_limit"] | None:
    """Whether to stop before the next step. With several processes the main one decides, at every tenth step."""
    verdicts: tuple[StopReason | Literal["time_limit"] | None, ...] = (None, "cancel", "drain", "time_limit")
    if run.accelerator.num_processes > 1 and run.at.step % _REPORT_EVERY:
        return None
    late = deadline is not None and time.monotonic() > deadline
    own = report.stop_requested() or ("time_limit" if late else None)
    return verdicts[int(run.from_main(verdicts.index(own)))]


@dataclass
class _Position:
    """How far a run is: together with the weights and the optimizer, all that is needed to go on."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches done of this epoch."""
    examples: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_score: float = -math.inf
    epochs_without_gain: int = 0
    micro_batch_tokens: int | None = None
    reduced: bool = False
    """Whether the micro-batch was made smaller because memory ran out."""
    unreported: int = 0
    """Steps whose losses are in the running sums."""


class _Run:
    """A network on its way: weights, optimizer, position, best epoch."""

    def __init__(
        self,
        network: nn.Module,
        data: TrainingSet,
        objectives: tuple[Objective, ...],
        schedule: Schedule,
        accelerator: Accelerator,
        *,
        seed: int,
        unit: str,
        max_steps: int | None,
    ) -> None:
        if not any(valid_rows(objectives, data.targets)):
            raise JobFailure("no training row has a label, and nothing else is to be learned", code="no_labels")
        if needs_teacher(objectives) and data.teacher_logits is None:
            raise ValueError("an objective needs the teacher's logits")
        self.network = network
        self.data = data
        self.objectives = objectives
        self.schedule = schedule
        self.accelerator = accelerator
        self.seed = seed
        self.unit = unit
        self.max_steps = max_steps
        self.at = _Position(micro_batch_tokens=schedule.micro_batch_tokens)
        self.best: dict[str, Tensor] = {}
        # Weight decay pulls matrices to zero; a bias or a norm's gain has no reason to go there.
        trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        trained.sort(key=lambda named: named[1].ndim < 2)
        self.names = [name for name, _ in trained]
        self.parameters = [value for _, value in trained]
        groups = [
            {"params": [value for value in self.parameters if (value.ndim < 2) == plain], "weight_decay": decay}
            for plain, decay in ((False, schedule.weight_decay), (True, 0.0))
        ]
        self.optimizer = AdamW(groups, lr=schedule.learning_rate, fused=True)
        # The weighted loss and each objective's own mean, added up since they were last reported.
        self.running = torch.zeros(1 + len(objectives), device=accelerator.device)
        self.diverged = torch.zeros((), dtype=torch.bool, device=accelerator.device)
        self._clock = time.monotonic()

    # The plan of a run.

    @property
    def over(self) -> bool:
        at, schedule = self.at, self.schedule
        if self.max_steps is not None:
            # In the middle of an epoch its validation is still to come.
            return at.step >= self.max_steps and at.batch == 0
        out_of_patience = schedule.patience is not None and at.epochs_without_gain >= schedule.patience
        return at.epoch >= schedule.epochs or out_of_patience

    def plan(self) -> list[NDArray[np.int64]]:
        """The batches of this epoch. They do not depend on the unit: a control arm sees the rows in the same order."""
        schedule = self.schedule
        return batches(self.data.encoded.lengths, schedule.batch_tokens, seed=self.seed, epoch=self.at.epoch)

    def share_done(self, batches_of_epoch: int) -> tuple[float, float]:
        """The share of the whole run that is done before and after the next step."""
        if self.max_steps is not None:
            return self.at.step / self.max_steps, (self.at.step + 1) / self.max_steps
        whole = self.schedule.epochs * batches_of_epoch
        before = self.at.epoch * batches_of_epoch + self.at.batch
        return before / whole, (before + 1) / whole

    def total_steps(self, batches_of_epoch: int) -> int:
        if self.max_steps is not None:
            return self.max_steps
        return self.at.step - self.at.batch + batches_of_epoch * (self.schedule.epochs - self.at.epoch)

    # One step.

    def step(self, rows: NDArray[np.int64], before: float, after: float) -> float:
        """One optimizer step on `rows`; the learning rate that it took."""
        at = self.at
        self.optimizer.zero_grad()
        values = self._add_up(self._gradients(rows))
        norm = nn.utils.get_total_norm([value.grad for value in self.parameters if value.grad is not None])
        finite = values.isfinite().all() & norm.isfinite()
        self.diverged |= ~finite
        # To look at the flag is to wait for the device, which costs nothing on the CPU alone.
        if (self.running.device.type == "cpu" or (at.step + 1) % _REPORT_EVERY == 0) and bool(self.diverged):
            raise JobFailure(
                f"the loss or its gradient was no longer finite by step {at.step + 1}",
                code="diverged",
                hint="lower the learning rate, or lengthen the warm-up",
                pointer="/schedule/learning_rate",
            )
        # The fused optimizer divides the gradients by a scale and leaves out a step whose flag is set, as for a
        # GradScaler. So clipping costs no pass of its own, and a step at which nobody looks is left out all the same.
        self.optimizer.grad_scale = ((norm + 1e-6) / self.schedule.max_grad_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        self.optimizer.found_inf = self.diverged.float()  # type: ignore[attr-defined]
        rate = learning_rate(self.schedule, before, after)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.running += values
        at.step, at.batch, at.unreported = at.step + 1, at.batch + 1, at.unreported + 1
        at.examples += len(rows)
        self._tick()
        return rate

    def _gradients(self, rows: NDArray[np.int64]) -> Tensor:
        """`_accumulate`, and once more with a smaller micro-batch when memory runs out for the first time."""
        try:
            return self._accumulate(rows)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if self.at.reduced:
                raise _out_of_memory() from error
        # Outside the handler: the exception's frames hold the tensors that must go.
        self.optimizer.zero_grad()
        if self.running.device.type == "cuda":
            torch.cuda.empty_cache()
        self.at.reduced = True
        self.at.micro_batch_tokens = (self.at.micro_batch_tokens or self.schedule.batch_tokens) // _SMALLER
        try:
            return self._accumulate(rows)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise _out_of_memory() from error

    def _accumulate(self, rows: NDArray[np.int64]) -> Tensor:
        """Adds the gradients of this process's share of `rows`; its part of the loss and of each objective's mean."""
        self._seed_step()
        counts = valid_rows(self.objectives, self.data.targets[torch.from_numpy(rows)])
        own, scale = rows[self.accelerator.process_index :: self.accelerator.num_processes], 1.0
        if not len(own):
            # More processes than rows. A pass that counts nothing gives the parameters the gradients that the others
            # have, so that all of them add up the same tensors.
            own, scale = rows[:1], 0.0
        values = torch.zeros_like(self.running)
        for part in micro_batches(own, self.data.encoded.lengths, self.at.micro_batch_tokens):
            inputs, teacher, targets = self._inputs(part)
            with autocast(self.accelerator.device, self.schedule.precision):
                logits = self.network(**inputs).logits
            terms = total(self.objectives, logits, teacher, targets)
            loss = terms.loss(counts) * scale
            torch.autograd.backward(loss)
            values += torch.stack([loss.detach(), *(mean.detach() * scale for mean in terms.means(counts))])
        return values

    def _inputs(self, rows: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        chosen = torch.from_numpy(rows)
        tensors = {"targets": self.data.targets[chosen]}
        if self.data.teacher_logits is not None:
            tensors["teacher"] = self.data.teacher_logits[chosen]
        inputs = _to(self.accelerator.device, collate(self.data.encoded, rows))
        tensors = _to(self.accelerator.device, tensors)
        return inputs, tensors.get("teacher"), tensors["targets"]

    def _add_up(self, values: Tensor) -> Tensor:
        """`values` and the gradients, summed over the processes in one message."""
        if self.accelerator.num_processes == 1:
            return values
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        together = self.accelerator.reduce(torch.cat([values, *(one.flatten() for one in gradients)]), "sum")
        summed: Tensor
        summed, *parts = together.split([len(values), *(one.numel() for one in gradients)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return summed

    def _seed_step(self) -> None:
        name = f"{self.seed}/{self.unit}/{self.at.step}/{self.accelerator.process_index}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        # Not torch.manual_seed: without a GPU it formats a stack trace at every call.
        torch.default_generator.manual_seed(seed)
        if self.running.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def _tick(self) -> None:
        now = time.monotonic()
        self.at.seconds += now - self._clock
        self._clock = now

    # The end of an epoch, and of the run.

    def finish_epoch(self, score: float) -> None:
        at = self.at
        score = self.from_main(score)
        if score > at.best_score or not self.best:
            at.best_epoch, at.best_score, at.epochs_without_gain = at.epoch, score, 0
            self.best = {name: value.detach().to("cpu", copy=True) for name, value in self.network.state_dict().items()}
        else:
            at.epochs_without_gain += 1
        at.epoch, at.batch = at.epoch + 1, 0
        self._tick()

    def outcome(self) -> Outcome:
        at = self.at
        speed = at.examples / at.seconds if at.seconds else 0.0
        return Outcome(at.step, at.epoch, at.best_epoch, at.best_score, at.seconds, speed)

    def from_main(self, value: float) -> float:
        """The main process's value, for every process: what they decide on must be the same for all of them."""
        if self.accelerator.num_processes == 1:
            return value
        own = value if self.accelerator.is_main_process else 0.0
        device = self.accelerator.device
        return float(self.accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=device), "sum"))

    # To disk and back.

    def tensors(self) -> dict[str, Tensor]:
        """Names to tensors: the network's, the optimizer's moments by parameter, the best epoch's, the running sums."""
        found = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, value in zip(self.names, self.parameters, strict=True):
            found |= {f"optimizer.{name}.{key}": moment for key, moment in self.optimizer.state.get(value, {}).items()}
        found |= {f"best.{name}": value for name, value in self.best.items()}
        return found | {"running": self.running}

    def restore(self, checkpoint: Checkpoint) -> None:
        self.at = _Position(**checkpoint.state)
        tensors = checkpoint.tensors
        self.network.load_state_dict(_under("network.", tensors))
        self.best = _under("best.", tensors)
        moments = {
            index: found
            for index, name in enumerate(self.names)
            if (found := _under(f"optimizer.{name}.", tensors, only=("step", "exp_avg", "exp_avg_sq")))
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.running.copy_(tensors["running"])


def learning_rate(schedule: Schedule, before: float, after: float) -> float:
    """The rate of a step that leads from the share `before` of a run to the share `after`, both in 0 to 1.

    It rises in a straight line, is `schedule.learning_rate` at the end of the warm-up, and no step has a rate of 0.
    """
    if before < schedule.warmup:
        return schedule.learning_rate * min(1.0, after / schedule.warmup)
    left = (1 - before) / (1 - schedule.warmup)
    match schedule.decay:
        case "linear":
            return schedule.learning_rate * left
        case "cosine":
            return schedule.learning_rate * (1 - math.cos(math.pi * left)) / 2
        case "constant":
            return schedule.learning_rate
        case _:
            assert_never(schedule.decay)


# --- what is told and kept on the way ---------------------------------------------------------------------------------


class _Metrics:
    """Reports a run's losses and scores; silent on all processes but the main one."""

    def __init__(self, run: _Run, report: Report, arm: str, stage: int, phase: int) -> None:
        self._run = run
        self._report = report
        self._of = (arm, stage, phase)
        self._since = (run.at.examples, time.monotonic())

    def after_step(self, rate: float) -> None:
        at = self._run.at
        if at.step != 1 and at.step % _REPORT_EVERY:
            return
        loss, *means = (self._run.running / at.unreported).tolist()
        self._run.running.zero_()
        at.unreported = 0
        examples, then = self._since
        self._since = (at.examples, time.monotonic())
        speed = (self._since[0] - examples) / max(self._since[1] - then, 1e-9)
        self._tell("loss", loss)
        kinds = [objective.kind for objective in self._run.objectives if not isinstance(objective, Reserved)]
        for place, (kind, mean) in enumerate(zip(kinds, means, strict=True)):
            # A second objective of one kind, such as another temperature, is soft_targets_2.
            repeated = kinds[: place + 1].count(kind)
            self._tell(kind if repeated == 1 else f"{kind}_{repeated}", mean)
        self._tell("learning_rate", rate)
        self._tell("examples_per_second", speed)

    def after_epoch(self, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            self._tell(f"validation_{name}", value)
        # Validation is no training time.
        self._since = (self._run.at.examples, time.monotonic())

    def _tell(self, name: str, value: float) -> None:
        if self._run.accelerator.is_main_process:
            self._report.metric(*self._of, name, self._run.at.step, value)


class _Saving:
    """When a checkpoint is due: after `seconds`, and after an epoch, unless writing takes too long for that."""

    def __init__(self, run: _Run, checkpoints: Checkpoints, report: Report, *, unit: str, seconds: float) -> None:
        self._run = run
        self._checkpoints = checkpoints
        self._report = report
        self._unit = unit
        self._seconds = seconds
        self._last = time.monotonic()
        self._cost = 0.0

    def after_step(self) -> None:
        if time.monotonic() - self._last >= max(self._seconds, self._cost / _CHECKPOINT_SHARE):
            self.save()

    def after_epoch(self) -> None:
        # After the last epoch the finished unit is written at once.
        if not self._run.over and time.monotonic() - self._last >= self._cost / _EPOCH_CHECKPOINT_SHARE:
            self.save()

    def save(self) -> None:
        if not self._run.accelerator.is_main_process:
            return
        begun = time.monotonic()
        at = self._run.at
        path = self._checkpoints.save(self._unit, at.step, self._run.tensors(), asdict(at))
        self._last = time.monotonic()
        self._cost = self._last - begun
        self._report.checkpoint(at.step, path)


def _under(prefix: str, tensors: dict[str, Tensor], only: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    if only is not None:
        return {name: tensors[prefix + name] for name in only if prefix + name in tensors}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory() -> JobFailure:
    return JobFailure(
        "there is not enough memory for this network and this many tokens at once",
        code="out_of_memory",
        hint="set micro_batch_tokens, lower max_length, or choose a smaller student",
        pointer="/schedule/micro_batch_tokens",
    )
