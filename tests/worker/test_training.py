"""The loop against a plain one, and that nothing changes what it computes: interruption, accumulation, processes."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from models.errors import JobFailure
from models.specs import FineTune, HardLabels, Hinton, Objective, Schedule, SoftTargets, TextClassification
from tests.factories import LABELS, tiny_network, tiny_rows, tiny_tokenizer
from worker import objectives as loss
from worker.asking import autocast, make_accelerator, predict
from worker.checkpoints import Checkpoints
from worker.data import Answers, Encoded, batches, collate
from worker.outputs import TrainingSet
from worker.protocol import PhaseName, Stopped, StopReason
from worker.training import (
    Outcome,
    learning_rate,
    train,
)

TASK = TextClassification(kind="text-classification", text="text", label="label")
HINTON = Hinton(preset="hinton", temperature=2.0, alpha=0.5).outputs(TASK)
SCHEDULE = Schedule(epochs=3, learning_rate=3e-3, batch_tokens=128, warmup=0.1, precision="fp32")


def predict_logits(network: nn.Module, rows: Encoded, **options: Any) -> Tensor:
    """(N, C)"""
    return torch.from_numpy(predict(network, rows, **options).values)


def taught(rows: Encoded, targets: Tensor, teacher: Tensor) -> TrainingSet:
    return TrainingSet(rows, targets, (Answers.whole(teacher.numpy()),), (1.0,))


def total(objectives: Any, logits: Tensor, teacher: Tensor | None, targets: Tensor) -> loss.Terms:
    heard = None if teacher is None else loss.Heard(teacher[None], (1.0,), "probabilities")
    return loss.total(objectives, logits, heard, targets, nature="one_of")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


@dataclass
class Heard:
    """A report that keeps what it hears, and may stop or kill the one who tells it."""

    metrics: list[tuple[str, int, int, str, int, float]] = field(default_factory=list)
    checkpoints: list[tuple[int, Path]] = field(default_factory=list)
    stop: Callable[[], StopReason | None] = lambda: None

    def phase(self, phase: PhaseName) -> None: ...

    def progress(self, progress: float, eta_seconds: float | None = None) -> None: ...

    def metric(self, arm: str, stage: int, phase: int, name: str, step: int, value: float) -> None:
        self.metrics.append((arm, stage, phase, name, step, value))

    def event(self, code: str, message: str, **data: Any) -> None: ...

    def checkpoint(self, step: int, path: Path) -> None:
        self.checkpoints.append((step, path))

    def stop_requested(self) -> StopReason | None:
        return self.stop()

    def values(self, name: str) -> dict[int, float]:
        return {step: value for *_, one, step, value in self.metrics if one == name}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return make_accelerator("cpu")


def encoded(texts: list[str]) -> Encoded:
    ids = [np.array(one.ids, np.int32) for one in tiny_tokenizer().encode_batch(texts)]
    return Encoded(ids=ids, lengths=np.array([len(one) for one in ids], np.int64), pad_id=0)


def training_set(rows: int = 60, *, unlabelled: int = 0) -> TrainingSet:
    texts, names = tiny_rows(rows)
    targets = torch.tensor([LABELS.index(name) for name in names])
    targets[:unlabelled] = -1
    rows_of = encoded(texts)
    teacher = predict_logits(tiny_network(seed=9), rows_of, device=torch.device("cpu"), precision="fp32")
    return taught(rows_of, targets, teacher * 20)


DATA = training_set(90)
START = {name: value.clone() for name, value in tiny_network(seed=1).state_dict().items()}


def accuracy(network: nn.Module) -> dict[str, float]:
    logits = predict_logits(network, DATA.encoded, device=torch.device("cpu"), precision="fp32")
    return {"accuracy": (logits.argmax(1) == DATA.targets).float().mean().item()}


def distance(network: nn.Module) -> dict[str, float]:
    """How far the weights have come: better after each epoch, so that the last epoch's weights are those kept."""
    moved = [(value.cpu().double() - START[name]).abs().sum().item() for name, value in network.state_dict().items()]
    return {"accuracy": sum(moved)}


def no_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return network


def run(
    folder: Path,
    accelerator: Accelerator,
    *,
    network: nn.Module | None = None,
    data: TrainingSet = DATA,
    validate: Callable[[nn.Module], dict[str, float]] = distance,
    objectives: list[Any] = HINTON,
    schedule: Schedule = SCHEDULE,
    report: Heard | None = None,
    previous: list[Path] | None = None,
    checkpoint_seconds: float = 0.0,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    seed: int = 5,
    unit: str = "distilled-0-0",
    **more: Any,
) -> tuple[nn.Module, Outcome, Heard]:
    network = tiny_network(seed=1) if network is None else network
    report = report or Heard()
    outcome = train(
        network,
        data,
        validate,
        objectives,
        schedule,
        seed=seed,
        unit=unit,
        arm="distilled",
        stage=0,
        phase=0,
        checkpoints=Checkpoints(folder, previous or []),
        report=report,
        accelerator=accelerator,
        checkpoint_seconds=checkpoint_seconds,
        on_progress=on_progress,
        **more,
    )
    return network, outcome, report


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def far_apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, accelerator: Accelerator
) -> tuple[dict[str, Tensor], Outcome, Heard]:
    network, outcome, heard = run(tmp_path_factory.mktemp("unbroken"), accelerator, checkpoint_seconds=1e9)
    return weights(network), outcome, heard


class TestTheResult:
    def test_equals_a_plain_loop(self, tmp_path: Path, accelerator: Accelerator) -> None:
        """Thirty lines with torch alone: AdamW, linear warm-up and decay, clipping, Hinton's loss."""
        schedule = SCHEDULE.model_copy(update={"epochs": 2, "max_grad_norm": 0.5})
        network, _, _ = run(
            tmp_path, accelerator, network=no_dropout(tiny_network(seed=1)), schedule=schedule, validate=ever_better()
        )
        plain = no_dropout(tiny_network(seed=1)).train()
        decayed = [value for value in plain.parameters() if value.ndim > 1]
        others = [value for value in plain.parameters() if value.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], foreach=False
        )
        assert DATA.teachers
        plan = [(epoch, batches(DATA.encoded.lengths, 128, seed=5, epoch=epoch)) for epoch in range(2)]
        for epoch, rows_of_epoch in plan:
            for place, rows in enumerate(rows_of_epoch):
                done = (epoch + place / len(rows_of_epoch)) / 2
                after = (epoch + (place + 1) / len(rows_of_epoch)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = 3e-3 * (min(1.0, after / 0.1) if done < 0.1 else (1 - done) / 0.9)
                logits = plain(**collate(DATA.encoded, rows)).logits
                teacher = torch.from_numpy(DATA.teachers[0].values)[rows]
                kl = kl_div(log_softmax(logits / 2, -1), softmax(teacher / 2, -1), reduction="batchmean") * 4
                loss = 0.5 * kl + 0.5 * cross_entropy(logits, DATA.targets[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
                optimizer.step()
        # AdamW divides by the root of a square: float32 noise grows to this in some twenty steps.
        assert far_apart(weights(network), weights(plain)) < 2e-4

    def test_learns(self, tmp_path: Path, accelerator: Accelerator) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 20, "learning_rate": 1e-3})
        hard = [HardLabels(kind="hard_labels")]
        network, outcome, _ = run(tmp_path, accelerator, schedule=schedule, objectives=hard, validate=accuracy)
        assert outcome.best_score > 0.9
        assert accuracy(network)["accuracy"] == outcome.best_score

    def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(
        self, unbroken: tuple[dict[str, Tensor], Outcome, Heard], tmp_path: Path, accelerator: Accelerator
    ) -> None:
        expected, _, _ = unbroken
        torch.manual_seed(12345)
        again, _, _ = run(tmp_path / "again", accelerator, checkpoint_seconds=1e9)
        assert_same_bits(weights(again), expected)
        other, _, _ = run(tmp_path / "other", accelerator, checkpoint_seconds=1e9, seed=6)
        assert far_apart(weights(other), expected) > 0
        arm, _, _ = run(tmp_path / "arm", accelerator, checkpoint_seconds=1e9, unit="control-0-0")
        assert far_apart(weights(arm), expected) > 0

    def test_holds_the_best_epoch_in_evaluation_mode(self, tmp_path: Path, accelerator: Accelerator) -> None:
        after_epoch: list[dict[str, Tensor]] = []
        scores = iter([0.2, 0.7, 0.7])

        def validate(network: nn.Module) -> dict[str, float]:
            assert not network.training
            after_epoch.append(weights(network))
            return {"accuracy": next(scores)}

        network, outcome, _ = run(tmp_path, accelerator, validate=validate)
        assert (outcome.best_epoch, outcome.best_score, outcome.epochs_run) == (1, 0.7, 3)
        assert_same_bits(weights(network), after_epoch[1])
        assert not network.training

    def test_patience_ends_it(self, tmp_path: Path, accelerator: Accelerator) -> None:
        scores = iter([0.5, 0.6, 0.6, 0.1, 0.9])
        schedule = SCHEDULE.model_copy(update={"epochs": 5, "patience": 2})
        _, outcome, _ = run(
            tmp_path, accelerator, schedule=schedule, validate=lambda _: {"f1": next(scores)}, score="f1"
        )
        assert (outcome.best_epoch, outcome.epochs_run) == (1, 4)

    @pytest.mark.parametrize("max_steps", [1, 5, 40])
    def test_max_steps_is_exact(self, tmp_path: Path, accelerator: Accelerator, max_steps: int) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 2, "patience": 1})
        told: list[tuple[int, int]] = []
        _, outcome, heard = run(
            tmp_path,
            accelerator,
            schedule=schedule,
            max_steps=max_steps,
            validate=lambda _: {"accuracy": 0.0},
            on_progress=lambda done, total: told.append((done, total)),
        )
        assert outcome.steps == max_steps
        assert told == [(step, max_steps) for step in range(1, max_steps + 1)]
        assert list(heard.values("validation_accuracy"))[-1] == max_steps

    def test_biases_and_norms_do_not_decay(self, tmp_path: Path, accelerator: Accelerator) -> None:
        """A row that only one class explains moves nothing but what decay moves, when the learning signal is nil."""
        network = no_dropout(tiny_network(seed=1))
        before = weights(network)
        teacher = predict_logits(network, DATA.encoded, device=torch.device("cpu"), precision="fp32")
        schedule = Schedule(
            epochs=1,
            learning_rate=1e-2,
            batch_tokens=4096,
            weight_decay=1.0,
            warmup=0,
            decay="constant",
            precision="fp32",
        )
        soft = [SoftTargets(kind="soft_targets", temperature=1.0, weight=1e-30)]
        run(
            tmp_path,
            accelerator,
            network=network,
            data=taught(DATA.encoded, DATA.targets, teacher),
            objectives=soft,
            schedule=schedule,
        )
        for name, value in network.state_dict().items():
            decayed = value.ndim > 1
            torch.testing.assert_close(value, before[name] * (0.99 if decayed else 1.0), rtol=1e-5, atol=1e-6)

    def test_a_frozen_parameter_stays(self, tmp_path: Path, accelerator: Accelerator) -> None:
        network = tiny_network(seed=1)
        table = network.get_input_embeddings().weight
        table.requires_grad_(False)
        before = table.clone()
        run(tmp_path, accelerator, network=network)
        assert torch.equal(table, before)


def ever_better() -> Callable[[nn.Module], dict[str, float]]:
    scores = iter(range(1000))
    return lambda _: {"accuracy": float(next(scores))}


class TestAccumulation:
    @pytest.mark.parametrize("micro", [16, 48, 100])
    def test_micro_batches_change_nothing(self, tmp_path: Path, accelerator: Accelerator, micro: int) -> None:
        data = training_set(unlabelled=25)
        found = []
        for micro_batch_tokens in (None, micro):
            schedule = SCHEDULE.model_copy(update={"epochs": 1, "micro_batch_tokens": micro_batch_tokens})
            folder = tmp_path / str(micro_batch_tokens)
            network = no_dropout(tiny_network(seed=1))
            _, _, heard = run(folder, accelerator, network=network, data=data, schedule=schedule)
            found.append((weights(network), heard.values("loss"), heard.values("hard_labels")))
        assert far_apart(found[0][0], found[1][0]) < 1e-4
        for place in (1, 2):
            assert found[0][place] == pytest.approx(found[1][place], rel=1e-4)


class TestResume:
    @pytest.mark.parametrize("step", [1, 2, 7, 10, 13, 20, 22])
    def test_after_a_kill_it_equals_an_unbroken_run(
        self,
        unbroken: tuple[dict[str, Tensor], Outcome, Heard],
        tmp_path: Path,
        accelerator: Accelerator,
        step: int,
    ) -> None:
        expected, outcome, heard = unbroken
        assert outcome.steps > 22
        assert outcome.best_epoch == 2

        def kill(done: int, total: int) -> None:
            if done == step:
                raise Killed

        first, second = tmp_path / "1", tmp_path / "2"
        with pytest.raises(Killed):
            # A checkpoint is due after every step, but writing takes its share, so that some are left out.
            run(first, accelerator, on_progress=kill)
        # Killed before the first checkpoint it begins anew, with the same student; later the student is read back.
        student = tiny_network(seed=1 if step == 1 else 77)
        network, resumed, more = run(second, accelerator, network=student, previous=[first])
        if step > 2:
            # A loss is told every few steps: of a run that goes on near the end perhaps none.
            assert 1 not in more.values("loss")
            assert 1 in heard.values("loss")
        assert_same_bits(weights(network), expected)
        assert same_outcome(resumed, outcome)
        assert all(heard.values("loss")[at] == value for at, value in more.values("loss").items())

    def test_many_kills(
        self, unbroken: tuple[dict[str, Tensor], Outcome, Heard], tmp_path: Path, accelerator: Accelerator
    ) -> None:
        expected, outcome, _ = unbroken
        folders: list[Path] = []
        for attempt in range(40):
            steps = 0

            def kill(done: int, total: int) -> None:
                nonlocal steps
                steps += 1
                if steps == 4:
                    raise Killed

            folders.insert(0, tmp_path / str(attempt))
            try:
                network, resumed, _ = run(
                    folders[0],
                    accelerator,
                    network=tiny_network(seed=attempt or 1),
                    previous=folders[1:],
                    on_progress=kill,
                )
                break
            except Killed:
                continue
        else:
            pytest.fail("it never came to an end")
        assert attempt > 3
        assert_same_bits(weights(network), expected)
        assert same_outcome(resumed, outcome)

    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_after_a_kill_in_validation(
        self, unbroken: tuple[dict[str, Tensor], Outcome, Heard], tmp_path: Path, accelerator: Accelerator, at: int
    ) -> None:
        expected, outcome, _ = unbroken
        count = 0

        def validate(network: nn.Module) -> dict[str, float]:
            nonlocal count
            count += 1
            if count == at + 1:
                raise Killed
            return distance(network)

        with pytest.raises(Killed):
            run(tmp_path, accelerator, validate=validate)
        network, resumed, _ = run(tmp_path, accelerator, network=tiny_network(seed=77))
        assert_same_bits(weights(network), expected)
        assert same_outcome(resumed, outcome)

    @pytest.mark.parametrize("reason", ["drain", "cancel"])
    @pytest.mark.parametrize("step", [0, 1, 9, 23])
    def test_after_a_stop_that_was_asked_for(
        self,
        unbroken: tuple[dict[str, Tensor], Outcome, Heard],
        tmp_path: Path,
        accelerator: Accelerator,
        step: int,
        reason: StopReason,
    ) -> None:
        expected, outcome, _ = unbroken
        asked = iter([None] * step)
        heard = Heard(stop=lambda: next(asked, reason))
        with pytest.raises(Stopped) as caught:
            run(tmp_path, accelerator, report=heard, checkpoint_seconds=1e9)
        assert caught.value.reason == reason
        assert heard.checkpoints[-1][0] == step
        network, resumed, _ = run(tmp_path, accelerator, network=tiny_network(seed=77), checkpoint_seconds=1e9)
        assert_same_bits(weights(network), expected)
        assert same_outcome(resumed, outcome)

    def test_a_torn_checkpoint_costs_no_more_than_steps(
        self, unbroken: tuple[dict[str, Tensor], Outcome, Heard], tmp_path: Path, accelerator: Accelerator
    ) -> None:
        expected, outcome, _ = unbroken
        for step in (8, 15):
            asked = iter([None] * (step - (8 if step == 15 else 0)))
            heard = Heard(stop=lambda asked=asked: next(asked, "drain"))
            with pytest.raises(Stopped):
                run(tmp_path, accelerator, report=heard, checkpoint_seconds=1e9)
        (heard.checkpoints[-1][1] / "tensors.safetensors").write_bytes(b"torn")
        network, resumed, _ = run(tmp_path, accelerator, network=tiny_network(seed=77), checkpoint_seconds=1e9)
        assert_same_bits(weights(network), expected)
        assert same_outcome(resumed, outcome)

    def test_max_steps_and_patience_survive(self, tmp_path: Path, accelerator: Accelerator) -> None:
        for name, more in (("steps", {"max_steps": 11}), ("patience", {})):
            schedule = SCHEDULE.model_copy(update={"epochs": 6, "patience": 2})
            low = lambda _: {"accuracy": 0.5}  # noqa: E731
            whole, expected, _ = run(tmp_path / name / "whole", accelerator, schedule=schedule, validate=low, **more)

            def kill(done: int, total: int) -> None:
                if done == 11:
                    raise Killed

            with pytest.raises(Killed):
                run(tmp_path / name / "1", accelerator, schedule=schedule, validate=low, on_progress=kill, **more)
            network, outcome, _ = run(tmp_path / name / "1", accelerator, schedule=schedule, validate=low, **more)
            assert_same_bits(weights(network), weights(whole))
            assert same_outcome(outcome, expected)

    def test_a_finished_unit_is_only_read(self, tmp_path: Path, accelerator: Accelerator) -> None:
        network, outcome, _ = run(tmp_path / "1", accelerator)
        again, same, heard = run(
            tmp_path / "2",
            accelerator,
            network=tiny_network(seed=77),
            previous=[tmp_path / "1"],
            validate=lambda _: pytest.fail("it is done"),
        )
        assert same == outcome
        assert not heard.metrics
        assert not again.training
        assert_same_bits(weights(again), weights(network))


def same_outcome(left: Outcome, right: Outcome) -> bool:
    """But for the clock."""
    timeless = ("steps", "epochs_run", "best_epoch", "best_score")
    return all(getattr(left, name) == getattr(right, name) for name in timeless)


class Explodes(nn.Module):
    """A network whose logits are not finite at its `at`-th forward pass."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner = tiny_network(seed=1)
        self.at = at
        self.passes = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        self.passes += self.training
        return SimpleNamespace(logits=logits * (float("nan") if self.passes == self.at else 1.0))


class Greedy(nn.Module):
    """A network that needs more memory than there is for more than `tokens` at once."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.inner = no_dropout(tiny_network(seed=1))
        self.tokens = tokens
        self.refused = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        if input_ids.numel() > self.tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(logits=self.inner(input_ids=input_ids, attention_mask=attention_mask).logits)


class TestFailures:
    @pytest.mark.parametrize("at", [1, 6])
    def test_what_is_not_finite_stops_before_the_optimizer(
        self, tmp_path: Path, accelerator: Accelerator, at: int
    ) -> None:
        network = Explodes(at)
        seen: dict[int, dict[str, Tensor]] = {0: weights(network)}
        with pytest.raises(JobFailure) as caught:
            run(
                tmp_path,
                accelerator,
                network=network,
                on_progress=lambda done, _: seen.update({done: weights(network)}),
            )
        assert caught.value.code == "diverged"
        assert list(seen) == list(range(at))
        assert_same_bits(weights(network), seen[at - 1])

    def test_a_learning_rate_that_explodes(self, tmp_path: Path, accelerator: Accelerator) -> None:
        """The whole way: the last checkpoint before it is still there and finite."""
        schedule = SCHEDULE.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
        with pytest.raises(JobFailure) as caught:
            run(tmp_path, accelerator, schedule=schedule)
        assert caught.value.code == "diverged"

    def test_out_of_memory_once_changes_nothing_but_the_micro_batch(
        self, tmp_path: Path, accelerator: Accelerator
    ) -> None:
        expected, _, _ = run(tmp_path / "enough", accelerator, network=Greedy(10**9), validate=ever_better())
        greedy = Greedy(64)
        network, outcome, _ = run(tmp_path / "scarce", accelerator, network=greedy, validate=ever_better())
        assert greedy.refused == 1
        assert outcome.epochs_run == 3
        assert far_apart(weights(network), weights(expected)) < 1e-3

    def test_out_of_memory_twice_is_final(self, tmp_path: Path, accelerator: Accelerator) -> None:
        with pytest.raises(JobFailure) as caught:
            run(tmp_path, accelerator, network=Greedy(8))
        assert caught.value.code == "out_of_memory"
        with pytest.raises(JobFailure) as caught:
            predict_logits(Greedy(8), DATA.encoded, device=torch.device("cpu"))
        assert caught.value.code == "out_of_memory"

    def test_other_errors_are_not_taken_for_it(self, tmp_path: Path, accelerator: Accelerator) -> None:
        network = tiny_network(seed=1)
        network.classifier = nn.Linear(7, 3)
        with pytest.raises(RuntimeError, match="shapes"):
            run(tmp_path, accelerator, network=network)

    def test_time_limit(self, tmp_path: Path, accelerator: Accelerator) -> None:
        with pytest.raises(JobFailure) as caught:
            run(tmp_path, accelerator, deadline=time.monotonic() - 1)
        assert caught.value.code == "time_limit"

    def test_nothing_to_learn_from(self, tmp_path: Path, accelerator: Accelerator) -> None:
        data = TrainingSet(DATA.encoded, torch.full((len(DATA.encoded),), -1))
        with pytest.raises(JobFailure) as caught:
            run(tmp_path, accelerator, data=data, objectives=[HardLabels(kind="hard_labels")])
        assert caught.value.code == "no_labels"
        with pytest.raises(ValueError, match="teacher"):
            run(tmp_path, accelerator, data=data)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_no_gpu(self) -> None:
        with pytest.raises(JobFailure) as caught:
            make_accelerator("gpu")
        assert caught.value.code == "no_gpu"


class TestReport:
    def test_metrics_at_the_first_and_every_tenth_step(
        self, unbroken: tuple[dict[str, Tensor], Outcome, Heard]
    ) -> None:
        _, outcome, heard = unbroken
        steps = [1, *range(10, outcome.steps + 1, 10)]
        for name in ("loss", "soft_targets", "hard_labels", "learning_rate", "examples_per_second"):
            assert list(heard.values(name)) == steps
        assert len(heard.values("validation_accuracy")) == 3
        assert len({metric[:-1] for metric in heard.metrics}) == len(heard.metrics)
        assert all(metric[:3] == ("distilled", 0, 0) for metric in heard.metrics)
        for step in steps:
            halves = 0.5 * heard.values("soft_targets")[step] + 0.5 * heard.values("hard_labels")[step]
            assert heard.values("loss")[step] == pytest.approx(halves, rel=1e-5)
        assert min(heard.values("examples_per_second").values()) > 0

    def test_two_objectives_of_one_kind_have_two_names(self, tmp_path: Path, accelerator: Accelerator) -> None:
        two: list[Objective] = [SoftTargets(kind="soft_targets", temperature=one) for one in (1.0, 4.0)]
        _, _, heard = run(tmp_path, accelerator, objectives=two, max_steps=1)
        assert heard.values("soft_targets").keys() == heard.values("soft_targets_2").keys() == {1}

    def test_a_checkpoint_after_each_epoch_but_the_last(self, tmp_path: Path, accelerator: Accelerator) -> None:
        _, _, heard = run(tmp_path, accelerator, checkpoint_seconds=1e9)
        per_epoch = list(heard.values("validation_accuracy"))
        assert heard.checkpoints[0][0] == per_epoch[0]
        assert {step for step, _ in heard.checkpoints} <= set(per_epoch[:-1])
        assert not heard.checkpoints[0][1].exists()
        assert (tmp_path / "distilled-0-0" / "finished" / "manifest.json").exists()

    def test_progress_ends_at_the_total(self, tmp_path: Path, accelerator: Accelerator) -> None:
        told: list[tuple[int, int]] = []
        _, outcome, _ = run(tmp_path, accelerator, on_progress=lambda done, total: told.append((done, total)))
        assert [done for done, _ in told] == list(range(1, outcome.steps + 1))
        assert told[-1] == (outcome.steps, outcome.steps)


class TestLearningRate:
    @pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
    @pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
    @pytest.mark.parametrize("steps", [1, 7, 100])
    def test_rises_to_the_top_and_falls_and_is_never_zero(self, decay: Any, warmup: float, steps: int) -> None:
        schedule = FineTune(learning_rate=0.5, warmup=warmup, decay=decay)
        rates = [learning_rate(schedule, step / steps, (step + 1) / steps) for step in range(steps)]
        assert all(0 < rate <= 0.5 for rate in rates)
        top = rates.index(max(rates))
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert max(rates) == pytest.approx(0.5, rel=0.2)
        if decay == "constant":
            assert rates[-1] == 0.5

    def test_by_hand(self) -> None:
        linear = Schedule(learning_rate=1.0, warmup=0.2)
        tenths = [learning_rate(linear, step / 10, (step + 1) / 10) for step in range(10)]
        assert tenths == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
        cosine = Schedule(learning_rate=1.0, warmup=0.0, decay="cosine")
        assert [learning_rate(cosine, at, 1.0) for at in (0.0, 0.5)] == pytest.approx([1.0, 0.5])


class TestPredictLogits:
    def test_rows_come_in_their_order_whatever_the_batches(self) -> None:
        network = tiny_network(seed=3)
        one_by_one = torch.cat(
            [network(**collate(DATA.encoded, np.array([row]))).logits for row in range(len(DATA.encoded))]
        ).detach()
        for batch_tokens in (1, 64, 4096):
            logits = predict_logits(
                network, DATA.encoded, device=torch.device("cpu"), batch_tokens=batch_tokens, precision="fp32"
            )
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, one_by_one, rtol=1e-4, atol=1e-6)

    def test_tells_how_many_rows_are_done_and_leaves_the_mode(self) -> None:
        network = tiny_network().train()
        told: list[int] = []
        logits = predict_logits(
            network, DATA.encoded, device=torch.device("cpu"), batch_tokens=100, on_rows=told.append
        )
        assert network.training
        assert told == sorted(told)
        assert told[-1] == len(DATA.encoded)
        assert not logits.is_inference()
        assert not logits.requires_grad

    def test_may_be_stopped(self) -> None:
        def stop(rows: int) -> None:
            raise Stopped("cancel")

        network = tiny_network().train()
        with pytest.raises(Stopped):
            predict_logits(network, DATA.encoded, device=torch.device("cpu"), on_rows=stop)
        assert network.training

    def test_no_rows(self) -> None:
        nothing = Encoded(ids=[], lengths=np.zeros(0, np.int64), pad_id=0)
        assert len(predict_logits(tiny_network(), nothing, device=torch.device("cpu"))) == 0

    def test_bf16_is_near(self) -> None:
        network = tiny_network(seed=3)
        exact, near = (
            predict_logits(network, DATA.encoded, device=torch.device("cpu"), precision=precision)
            for precision in ("fp32", "bf16")
        )
        assert 0 < (exact - near).abs().max() < 0.05
        assert near.dtype == torch.float32

    def test_bf16_trains(self, tmp_path: Path, accelerator: Accelerator) -> None:
        network, _, heard = run(
            tmp_path, accelerator, schedule=SCHEDULE.model_copy(update={"precision": "bf16", "epochs": 1})
        )
        assert all(value.dtype == torch.float32 for value in network.state_dict().values() if value.is_floating_point())
        assert np.isfinite(list(heard.values("loss").values())).all()
        with autocast(torch.device("cpu"), "fp32"):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_the_global_random_state_does_not_matter_in_the_middle(
    unbroken: tuple[dict[str, Tensor], Outcome, Heard], tmp_path: Path, accelerator: Accelerator
) -> None:
    """A validation that draws random numbers must not change what is learned."""

    def validate(network: nn.Module) -> dict[str, float]:
        torch.rand(17)
        random.random()
        np.random.rand()
        return distance(network)

    network, _, _ = run(tmp_path, accelerator, validate=validate, checkpoint_seconds=1e9)
    assert_same_bits(weights(network), unbroken[0])


@pytest.fixture(scope="module")
def gpu() -> Accelerator:
    return make_accelerator("gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
class TestOnAGpu:
    """Accelerate keeps one device for the life of a process, so these want a run of their own: `pytest -m gpu`."""

    def test_equals_the_cpu(self, tmp_path: Path, gpu: Accelerator) -> None:
        """Three steps of a plain loop; in more of them AdamW would make noise large."""
        expected, _, _ = run(
            tmp_path / "1", gpu, network=no_dropout(tiny_network(seed=1)), max_steps=3, validate=distance
        )
        plain = no_dropout(tiny_network(seed=1)).train()
        decay = [[value for value in plain.parameters() if (value.ndim < 2) == small] for small in (False, True)]
        optimizer = torch.optim.AdamW(
            [{"params": decay[0], "weight_decay": 0.01}, {"params": decay[1], "weight_decay": 0.0}]
        )
        assert DATA.teachers
        for step, rows in enumerate(batches(DATA.encoded.lengths, 128, seed=5, epoch=0)[:3]):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(SCHEDULE, step / 3, (step + 1) / 3)
            logits = plain(**collate(DATA.encoded, rows)).logits
            terms = total(HINTON, logits, torch.from_numpy(DATA.teachers[0].values)[rows], DATA.targets[rows])
            optimizer.zero_grad()
            terms.loss().backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
        assert far_apart({name: value.cpu() for name, value in weights(expected).items()}, weights(plain)) < 1e-3

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
    def test_learns_and_resumes(self, tmp_path: Path, gpu: Accelerator, precision: Any) -> None:
        schedule = SCHEDULE.model_copy(update={"epochs": 20, "learning_rate": 1e-3, "precision": precision})

        def validate(network: nn.Module) -> dict[str, float]:
            logits = predict_logits(network, DATA.encoded, device=gpu.device, precision=precision)
            return {"accuracy": (logits.argmax(1) == DATA.targets).float().mean().item()}

        more: dict[str, Any] = {"objectives": [HardLabels(kind="hard_labels")], "validate": validate}
        asked = iter([None] * 33)
        heard = Heard(stop=lambda: next(asked, "drain"))
        with pytest.raises(Stopped):
            run(tmp_path, gpu, schedule=schedule, report=heard, **more)
        _, outcome, _ = run(tmp_path, gpu, network=tiny_network(seed=77), schedule=schedule, **more)
        assert outcome.best_score > 0.9

    def test_what_is_not_finite_is_left_out_until_somebody_looks(self, tmp_path: Path, gpu: Accelerator) -> None:
        network = Explodes(13).to(gpu.device)
        seen: dict[int, dict[str, Tensor]] = {}
        with pytest.raises(JobFailure) as caught:
            run(
                tmp_path,
                gpu,
                network=network,
                on_progress=lambda done, _: seen.update({done: weights(network)}),
                validate=ever_better(),
            )
        assert caught.value.code == "diverged"
        assert max(seen) == 19
        for step in range(12, 20):
            assert_same_bits(seen[step], seen[12])
        assert_same_bits(weights(network), seen[12])
        assert far_apart(seen[12], seen[11]) > 0

    def test_out_of_memory_for_real(self, tmp_path: Path, gpu: Accelerator) -> None:
        """Most of the memory is taken, so that a batch does not fit and a quarter of it does."""
        generator = np.random.default_rng(0)
        ids = [generator.integers(5, 50, 64).astype(np.int32) for _ in range(20_000)]
        rows = Encoded(ids=ids, lengths=np.full(len(ids), 64, np.int64), pad_id=0)
        data = TrainingSet(rows, torch.zeros(len(ids), dtype=torch.int64))
        schedule = Schedule(epochs=1, batch_tokens=1_048_576, precision="fp32")
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(6e9 / torch.cuda.get_device_properties(0).total_memory)
        try:
            _, outcome, _ = run(
                tmp_path,
                gpu,
                data=data,
                schedule=schedule,
                objectives=[HardLabels(kind="hard_labels")],
                validate=ever_better(),
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert outcome.steps == 2
        assert json.loads((tmp_path / "distilled-0-0" / "finished" / "state.json").read_text())["steps"] == 2


# Run by each of several processes; the first one prints what it found.
SHARDED = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.worker.test_training import *

torch.set_num_threads(1)
accelerator = make_accelerator("cpu")
main = accelerator.is_main_process
schedule = SCHEDULE.model_copy(update={"batch_tokens": 48, "epochs": 1})
steps = []
heard = Heard(stop=lambda: "drain" if len(steps) >= 10 else None)
arguments = dict(data=training_set(unlabelled=25), schedule=schedule, validate=accuracy, checkpoint_seconds=1e9)
network = no_dropout(tiny_network(seed=1))
network.unused = torch.nn.Linear(2, 2, bias=False)
torch.nn.init.ones_(network.unused.weight)
stopped = 0
try:
    count = lambda *at: steps.append(at)
    run(Path(sys.argv[1]), accelerator, network=network, report=heard, on_progress=count, **arguments)
except Stopped:
    stopped = 1
accelerator.wait_for_everyone()
network = no_dropout(tiny_network(seed=2))
network.unused = torch.nn.Linear(2, 2, bias=False)
torch.nn.init.ones_(network.unused.weight)
network, outcome, again = run(Path(sys.argv[1]), accelerator, network=network, **arguments)
total = float(sum(value.double().sum() for value in network.state_dict().values()))
same = float(accelerator.reduce(torch.tensor([total], dtype=torch.float64), "sum")) == total * accelerator.num_processes
assert main or not (heard.metrics or heard.checkpoints or again.metrics or again.checkpoints)
if main:
    save_file(weights(network), sys.argv[1] + "/result.safetensors")
    loss = {**heard.values("loss"), **again.values("loss")}
    print(json.dumps([accelerator.num_processes, stopped, same, outcome.steps, loss]))
accelerator.end_training()
"""


class TestProcesses:
    @pytest.mark.timeout(600)  # four times the start of torch, on a machine that may be busy
    def test_three_equal_one(self, tmp_path: Path) -> None:
        """Through a stop and a resume, with batches of fewer rows than processes, and a layer that nothing uses."""
        found = [self.start(tmp_path / str(processes), processes) for processes in (1, 3)]
        assert {tuple(steps for steps in one[1:4]) for one in found} == {(1, True, found[0][3])}
        assert [one[0] for one in found] == [1, 3]
        one, *others = (load_file(tmp_path / str(processes) / "result.safetensors") for processes in (1, 3))
        for other in others:
            assert far_apart(one, other) < 1e-4
        for result in found[1:]:
            assert result[4] == pytest.approx(found[0][4], rel=1e-4)

    def start(self, folder: Path, processes: int) -> list[Any]:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        started = []
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            environment = {**os.environ, **(place | address if processes > 1 else {})}
            command = [sys.executable, "-W", "ignore", "-c", SHARDED, str(folder)]
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            outputs = [one.communicate(timeout=240) for one in started]
        finally:
            for one in started:
                one.kill()
        assert [one.returncode for one in started] == [0] * processes, outputs
        answer: list[Any] = json.loads(outputs[0][0].strip().splitlines()[-1])
        return answer
