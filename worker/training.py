"""The training loop.

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
from dataclasses import asdict, dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from models.errors import JobFailure
from models.specs import FEATURES, HardLabels, Objective, Schedule
from worker.asking import autocast, is_out_of_memory, known, out_of_memory, to_device
from worker.checkpoints import Checkpoint, Checkpoints
from worker.data import batches, collate, micro_batches
from worker.features import Features, counts
from worker.objectives import (
    NO_LABEL,
    Heard,
    Terms,
    active,
    features,
    needs_teacher,
    outputs,
    total,
    valid_rows,
    weight,
)
from worker.outputs import TrainingSet, asked, logits_of
from worker.preflight import step_zero
from worker.protocol import Report, Stopped, StopReason

_REPORT_EVERY = 10
# Writing checkpoints may take a fiftieth of the time; one at an epoch's end, a tenth of the epoch.
_CHECKPOINT_SHARE, _EPOCH_CHECKPOINT_SHARE = 0.02, 0.1
# After a CUDA out-of-memory error the network gets a quarter of the tokens at once: a half rarely helps.
_SMALLER = 4


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
    matching: Features | None = None,
    past: "Past | None" = None,
    look_first: bool = False,
) -> Outcome:
    """Trains `network` in place; at return it holds the weights of its best epoch, in evaluation mode.

    `validate` scores the network after each epoch; `score` names what is to be high. `unit` names the checkpoints: a
    unit that is finished is only read back, one that was begun goes on. `on_progress(done, total)` counts optimizer
    steps; the total is an estimate, since epochs differ by a few batches. `deadline` is in `time.monotonic()`.
    `max_steps`: exactly so many steps, round and round the rows, in place of the schedule's epochs and patience; a
    control arm gets its twin's number. `matching` has the feature objectives and their teacher, `past` the network's
    own moving average when that is the teacher. `look_first`: what share of the first step's gradient comes from the
    teacher is asked by a pass of its own that changes nothing, and reported as `distillation_gradient_share`.

    Where no objective trains an answer nothing is validated, and the last epoch's weights are kept.

    Metrics go to `report` under (arm, stage, phase), at the first step and every tenth: `loss`, one for each kind of
    objective, `learning_rate`, `examples_per_second`; and `validation_…` after each epoch.

    Raises `JobFailure`: `diverged` (the optimizer has not taken the step), `out_of_memory` (with a smaller micro-batch
    too), `time_limit`, `no_labels`. Raises `Stopped` with a checkpoint written, when `report` was asked to stop.
    """
    network.to(accelerator.device)
    done = checkpoints.finished(unit)
    if done is not None:
        network.load_state_dict(_under("", done.tensors, without="past."))
        if past is not None:
            past.network.load_state_dict(_under("past.", done.tensors))
        network.eval()
        return Outcome(**done.state)

    run = _Run(
        network,
        data,
        active(objectives),
        schedule,
        accelerator,
        seed=seed,
        unit=unit,
        max_steps=max_steps,
        matching=matching,
        past=past,
    )
    _resume(run, checkpoints, report, unit)
    saving = _Saving(run, checkpoints, report, unit=unit, seconds=checkpoint_seconds)
    metrics = _Metrics(run, report, arm, stage, phase)
    answers_are_trained = bool(outputs(run.objectives))

    network.train()
    if look_first:
        metrics.before(run.share_of_distillation())
    while not run.over:
        plan = run.plan()
        for rows in plan[run.at.batch :]:
            if run.at.step == max_steps:
                break
            _stop_if_asked(run, report, deadline, saving)
            rate = run.step(rows, *run.share_done(len(plan)))
            metrics.after_step(rate)
            if accelerator.is_main_process:
                on_progress(run.at.step, run.total_steps(len(plan)))
            saving.after_step()
        if answers_are_trained:
            network.eval()
            scores = validate(network)
            network.train()
            metrics.after_epoch(scores)
            run.finish_epoch(scores[score])
        else:
            run.finish_epoch(float(run.at.epoch))
        saving.after_epoch()

    network.load_state_dict(run.best)
    network.eval()
    outcome = run.outcome()
    if accelerator.is_main_process:
        checkpoints.finish(unit, run.best | run.past_tensors(), asdict(outcome))
    accelerator.wait_for_everyone()
    return outcome


def _resume(run: "_Run", checkpoints: Checkpoints, report: Report, unit: str) -> None:
    begun = checkpoints.latest(unit)
    if begun is None:
        return
    run.restore(begun)
    if run.accelerator.is_main_process:
        report.event("resumed", f"Training of {unit} goes on from step {begun.step}.", unit=unit, step=begun.step)


def _stop_if_asked(run: "_Run", report: Report, deadline: float | None, saving: "_Saving") -> None:
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


@dataclass
class Past:
    """A moving average of a network's own weights, which teaches it (mean teacher, arXiv:1703.01780)."""

    network: nn.Module
    decay: float

    def follow(self, network: nn.Module, step: int) -> None:
        """After optimizer step `step` (1-based). The first steps count fully, so that the average soon forgets the
        untrained weights."""
        decay = min(self.decay, step / (step + 9))
        with torch.no_grad():
            for own, new in zip(self.network.parameters(), network.parameters(), strict=True):
                own.lerp_(new.to(own.dtype), 1 - decay)


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
        matching: Features | None = None,
        past: Past | None = None,
    ) -> None:
        self.taught = any(not isinstance(one, HardLabels) for one in objectives)
        if not self.taught and not _labelled(data.targets).any():
            raise JobFailure("no training row has a label, and nothing else is to be learned", code="no_labels")
        if needs_teacher(objectives) and not data.teachers and past is None:
            raise ValueError("an objective needs the teacher's logits")
        if features(objectives) and matching is None:
            raise ValueError("an objective looks inside a teacher, and there is none")
        self.network = network
        self.matching = matching
        self.past = past
        if matching is not None:
            matching.to(accelerator.device)
        if past is not None:
            past.network.to(accelerator.device).eval()
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
        if matching is not None:
            trained += [(f"matching.{name}", value) for name, value in matching.named_parameters()]
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
        if self.past is not None:
            self.past.follow(self.network, at.step + 1)
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
            if not is_out_of_memory(error):
                raise
            if self.at.reduced:
                raise out_of_memory() from error
        # Outside the handler: the exception's frames hold the tensors that must go.
        self.optimizer.zero_grad()
        if self.running.device.type == "cuda":
            torch.cuda.empty_cache()
        self.at.reduced = True
        self.at.micro_batch_tokens = (self.at.micro_batch_tokens or self.schedule.batch_tokens) // _SMALLER
        try:
            return self._accumulate(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory() from error

    def _accumulate(self, rows: NDArray[np.int64]) -> Tensor:
        """Adds the gradients of this process's share of `rows`; its part of the loss and of each objective's mean."""
        self._seed_step()
        counts = self._counts(rows)
        own, scale = rows[self.accelerator.process_index :: self.accelerator.num_processes], 1.0
        if not len(own):
            # More processes than rows. A pass that counts nothing gives the parameters the gradients that the others
            # have, so that all of them add up the same tensors.
            own, scale = rows[:1], 0.0
        values = torch.zeros_like(self.running)
        for part in micro_batches(own, self.data.encoded.lengths, self.at.micro_batch_tokens):
            terms = self._terms(part)
            loss = terms.loss(counts) * scale
            torch.autograd.backward(loss)
            values += torch.stack([loss.detach(), *(mean.detach() * scale for mean in terms.means(counts))])
        return values

    def _terms(self, rows: NDArray[np.int64]) -> Terms:
        """Every objective on `rows`, by one forward pass of each network that is asked."""
        device, shape = self.accelerator.device, self.data.shape
        inputs = to_device(device, collate(self.data.encoded, rows))
        known_of = asked(self.data, rows).to(device)
        heard = known_of.heard
        with autocast(device, self.schedule.precision):
            if self.past is not None:
                with torch.no_grad():
                    own = logits_of(self.past.network(**known(self.past.network, inputs)), shape, known_of.places)
                heard = Heard(own.float()[None], (1.0,), "logits")
            if self.matching is not None:
                self.matching.ask_teacher(inputs)
            logits = logits_of(self.network(**known(self.network, inputs)), shape, known_of.places)
        answers = total(
            outputs(self.objectives),
            logits,
            heard,
            known_of.targets,
            nature=self.data.nature,
            valid=known_of.valid,
        )
        found = dict(zip(_output_places(self.objectives), zip(answers.sums, answers.counts, strict=True), strict=True))
        if self.matching is not None:
            inside = self.matching.terms(inputs["attention_mask"])
            found |= zip(_feature_places(self.objectives), inside, strict=True)
        in_order_of_spec = [found[place] for place in range(len(self.objectives))]
        return Terms(self.objectives, *zip(*in_order_of_spec, strict=True))

    def _counts(self, rows: NDArray[np.int64]) -> list[int]:
        """What each objective's sum is divided by: known from the rows alone."""
        known_of = asked(self.data, rows)
        answers = valid_rows(
            outputs(self.objectives), known_of.targets, known_of.heard, nature=self.data.nature, valid=known_of.valid
        )
        found = dict(zip(_output_places(self.objectives), answers, strict=True))
        inside = counts(features(self.objectives), self.data.encoded.lengths[rows])
        found |= zip(_feature_places(self.objectives), inside, strict=True)
        return [found[place] for place in range(len(self.objectives))]

    def share_of_distillation(self) -> float | None:
        """What share of the first step's gradient comes from the teacher, by norms; None where there is none.

        A student's own past is none at the first step. Raises `JobFailure` (`no_gradient`) if the teacher moves
        nothing: the student would learn from the labels alone. What is not finite or does not fit into memory is left
        to the step itself, which can help it.
        """
        if not self.taught or self.past is not None or self.at.step:
            return None
        try:
            norms = self._norms_by_source()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        if not all(map(math.isfinite, norms)):
            return None
        share: float = step_zero(norms[0], sum(norms))
        return share

    def _norms_by_source(self) -> list[float]:
        """The norms of the first micro-batch's gradient that comes from the teacher, and from the labels."""
        part = micro_batches(self.plan()[0], self.data.encoded.lengths, self.at.micro_batch_tokens)[0]
        self._seed_step()
        terms = self._terms(part)
        means = terms.means(self._counts(part))
        norms = []
        for labels in (False, True):
            chosen = [
                weight(one) * mean
                for one, mean in zip(self.objectives, means, strict=True)
                if isinstance(one, HardLabels) == labels and mean.requires_grad
            ]
            if not chosen:
                norms.append(0.0)
                continue
            found = torch.autograd.grad(
                torch.stack(chosen).sum(), self.parameters, retain_graph=True, allow_unused=True
            )
            norms.append(float(nn.utils.get_total_norm([one.double() for one in found if one is not None])))
        return norms

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
        if self.matching is not None:
            found |= {f"matching.{name}": value for name, value in self.matching.state_dict().items()}
        return found | self.past_tensors() | {"running": self.running}

    def past_tensors(self) -> dict[str, Tensor]:
        if self.past is None:
            return {}
        return {f"past.{name}": value.detach().cpu() for name, value in self.past.network.state_dict().items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        self.at = _Position(**checkpoint.state)
        tensors = checkpoint.tensors
        self.network.load_state_dict(_under("network.", tensors))
        self.best = _under("best.", tensors)
        if self.matching is not None:
            self.matching.load_state_dict(_under("matching.", tensors))
        if self.past is not None:
            self.past.network.load_state_dict(_under("past.", tensors))
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

    def before(self, share_of_distillation: float | None) -> None:
        if share_of_distillation is not None:
            self._tell("distillation_gradient_share", share_of_distillation)

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
        kinds = [objective.kind for objective in self._run.objectives]
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


def _labelled(targets: Tensor) -> Tensor:
    return ~targets.isnan() if targets.is_floating_point() else targets != NO_LABEL


def _output_places(objectives: Sequence[Objective]) -> list[int]:
    return [place for place, one in enumerate(objectives) if not isinstance(one, FEATURES)]


def _feature_places(objectives: Sequence[Objective]) -> list[int]:
    return [place for place, one in enumerate(objectives) if isinstance(one, FEATURES)]


def _under(
    prefix: str, tensors: dict[str, Tensor], only: Sequence[str] | None = None, without: str | None = None
) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, and not with `without`; their names lack the prefix."""
    if without is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(without)}
    if only is not None:
        return {name: tensors[prefix + name] for name in only if prefix + name in tensors}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
