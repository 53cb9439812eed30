"""The whole story of one distillation, top to bottom.

    preflight   the rows, the teacher's files, the student's shape: what can fail, fails here, in seconds
    teach       fine-tune the teacher if asked; its logits for every row, from the cache where they are known
    distil      the distilled arm, then the control arm: the same student trained on the labels alone
    export      the student to ONNX, fp32 and int8; the teacher too, once, so that it is measured alike
    evaluate    every arm on the same held-out rows; the precision that is served; the gate
    publish     the folder with its manifest, ready for the store

Knows no database, queue or web: it has an `Assignment`, tells a `Report`, and returns a folder.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from models import gates
from models.errors import JobFailure
from models.runtime import FILES, Precision, Runtime
from models.specs import HardLabels, LocalTeacher, Objective, Phase, ResolvedSpec, TextClassification
from worker import evaluation, export
from worker.cache import HostCache
from worker.checkpoints import Checkpoints
from worker.data import Encoded
from worker.protocol import Assignment, PhaseName, Report, Stopped
from worker.signals import SignalCache, fingerprint_of, row_keys
from worker.students import Student, build, parameters
from worker.tasks import TaskKind, for_task
from worker.tasks.text_classification import Data
from worker.teachers import OpenTeacher, find_folder, open_teacher
from worker.training import TrainingSet, make_accelerator, predict_logits, train

_SPLITS = ("train", "validation", "test")
_LATENCY = "latency.json"
_SHARES: Mapping[str, tuple[float, float]] = {
    "preflight": (0.0, 0.02),
    "teach": (0.02, 0.40),
    "distil": (0.40, 0.88),
    "export": (0.88, 0.92),
    "evaluate": (0.92, 0.99),
    "publish": (0.99, 1.0),
}
"""Where in the job's progress each phase begins and ends: a guess from its usual cost."""


@dataclass
class Counters:
    """What was computed and what was known already; they stand in the report."""

    teacher_training_steps: int = 0
    teacher_forward_rows: int = 0
    cached_signal_rows: int = 0
    student_training_steps: int = 0
    control_training_steps: int = 0


@dataclass
class Teaching:
    """A teacher that is ready: its network, who it is, and what it says of every row."""

    teacher: OpenTeacher
    identity: str
    logits: dict[str, NDArray[np.float32]]


@dataclass
class Run:
    """What every part of the story needs: the assignment, the rows, and whom to tell."""

    assignment: Assignment
    report: Report
    task: TextClassification
    kind: TaskKind
    data: Data
    accelerator: Accelerator
    checkpoints: Checkpoints
    cache: HostCache
    deadline: float | None
    counters: Counters = field(default_factory=Counters)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    phase: PhaseName = "preflight"
    tokenized: dict[tuple[int, str], tuple[Any, Encoded]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def spec(self) -> ResolvedSpec:
        return self.assignment.spec

    def encoded(self, tokenizer: Any, split: str) -> Encoded:
        """A split as this tokenizer cuts it. All arms of a student share one tokenizer, and the work is done once."""
        key = (id(tokenizer), split)
        if key not in self.tokenized:
            # The tokenizer is kept too: an id may be given again to another object once its own is gone.
            texts = getattr(self.data, split).texts
            self.tokenized[key] = tokenizer, self.kind.encode(tokenizer, texts, self.task.max_length)
        return self.tokenized[key][1]

    @contextmanager
    def in_phase(self, phase: PhaseName) -> Iterator[None]:
        self.phase = phase
        self.report.phase(phase)
        started = time.monotonic()
        yield
        self.seconds[phase] = round(time.monotonic() - started, 2)

    def progress(self, share: float) -> None:
        """`share` of the current phase is done."""
        start, end = _SHARES[self.phase]
        whole = start + (end - start) * min(max(share, 0.0), 1.0)
        spent = time.monotonic() - self.began
        self.report.progress(whole, round(spent / whole * (1 - whole), 1) if whole > 0.03 else None)

    def check_stop(self) -> None:
        reason = self.report.stop_requested()
        if reason is not None:
            raise Stopped(reason)

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))
        self.report.event(code, message)


def distil(assignment: Assignment, report: Report) -> Path:
    """Run the job; the folder of its finished student. Raises `JobFailure`, or `Stopped` when `report` asks for it."""
    report.phase("preflight")
    started = time.monotonic()
    run, teacher = _preflight(assignment, report)
    run.seconds["preflight"] = round(time.monotonic() - started, 2)
    with run.in_phase("teach"):
        teaching = _teach(run, teacher)
    with run.in_phase("distil"):
        untrained, distilled, control = _distil(run, teaching)
    with run.in_phase("export"):
        folder = _export(run, distilled)
        teacher_folder = _export_teacher(run, teaching)
    with run.in_phase("evaluate"):
        document, differing = _evaluate(run, teaching, folder, teacher_folder, untrained, distilled, control)
    with run.in_phase("publish"):
        _publish(run, teaching, folder, document, differing)
    report.progress(1.0, 0.0)
    return folder


# --- preflight --------------------------------------------------------------------------------------------------------


def _preflight(assignment: Assignment, report: Report) -> tuple[Run, OpenTeacher]:
    spec = assignment.spec
    kind = for_task(spec.task)
    task = spec.task
    if not isinstance(task, TextClassification):
        raise JobFailure("this kind of task is not available yet", code="not_available_yet", pointer="/task/kind")
    data = kind.read(task, spec.dataset, assignment.datasets, seed=spec.seed)
    run = Run(
        assignment,
        report,
        task,
        kind,
        data,
        make_accelerator(assignment.device),
        Checkpoints(
            assignment.work / "checkpoints",
            [work / "checkpoints" for work in assignment.previous],
            on_damaged=lambda path: report.event(
                "checkpoint_damaged",
                "A checkpoint did not match its hash; an older one is used.",
                unit=path.parent.name,
            ),
        ),
        HostCache(assignment.cache, assignment.cache_bytes),
        None if spec.max_seconds is None else time.monotonic() + spec.max_seconds,
    )
    for code, message in data.warnings:
        run.warn(code, message)
    if spec.promote is not None:
        for reason in gates.unreachable(spec.promote.gate, len(data.test)):
            run.warn("gate_unreachable", reason)
    reference = _local_teacher(spec)
    teacher = open_teacher(
        find_folder(reference.model, assignment),
        data.labels,
        fine_tune=reference.fine_tune is not None,
        seed=spec.seed,
        renamed=reference.labels,
        max_length=task.max_length,
    )
    # The student is built once before anything is trained: an impossible shape must not cost an hour of teaching.
    student = _build(run, teacher)
    run.report.event(
        "preflight_passed",
        f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test rows; "
        f"{len(data.labels)} labels; teacher {parameters(teacher.network)[0]:,} and student "
        f"{parameters(student.network)[0]:,} parameters.",
    )
    _smoke(run, student)
    return run, teacher


def _local_teacher(spec: ResolvedSpec) -> LocalTeacher:
    teacher = spec.teachers[0]
    if not isinstance(teacher, LocalTeacher):
        raise JobFailure(
            f"{teacher.kind!r} teachers are not available", code="not_available_yet", pointer="/teachers/0"
        )
    return teacher


def _smoke(run: Run, student: Student) -> None:
    """One forward pass of a few rows, so that what cannot run at all is known now."""
    texts = run.data.train.texts[:4]
    logits = predict_logits(
        student.network, run.kind.encode(student.tokenizer, texts, run.task.max_length), device=run.accelerator.device
    )
    if not torch.isfinite(logits).all():
        raise JobFailure(
            "the untrained student's answers are not numbers", code="diverged", pointer="/stages/0/student"
        )


def _build(run: Run, teacher: OpenTeacher) -> Student:
    spec = run.spec.stages[0].student
    return build(
        spec,
        teacher,
        run.data.train.texts,
        run.data.labels,
        seed=run.spec.seed,
        find_folder=lambda text: find_folder(text, run.assignment, pointer="/stages/0/student/model"),
        max_length=run.task.max_length,
    )


# --- teach ------------------------------------------------------------------------------------------------------------


def _teach(run: Run, teacher: OpenTeacher) -> Teaching:
    fine_tune = _local_teacher(run.spec).fine_tune
    identity = teacher.identity
    if fine_tune is not None:
        folder = run.cache.folder(
            "teachers",
            teacher.identity,
            fine_tune.model_dump(),
            run.data.hashes,
            run.task.model_dump(),
            run.spec.seed,
        )
        if (folder / "config.json").exists():
            run.report.event("teacher_from_cache", "This teacher was fine-tuned before, on the same rows.")
            teacher = open_teacher(
                folder, run.data.labels, fine_tune=False, seed=run.spec.seed, max_length=run.task.max_length
            )
        else:
            _fine_tune(run, teacher, Phase(objectives=[HardLabels(kind="hard_labels")], schedule=fine_tune))
            with run.cache.new(folder) as partial:
                export.write_student(
                    partial,
                    teacher.network,
                    teacher.tokenizer,
                    task=run.task.kind,
                    labels=run.data.labels,
                    max_length=run.task.max_length,
                )
        identity = fingerprint_of(teacher.network, teacher.tokenizer)
    logits = _signals(run, teacher, identity)
    _must_beat_chance(run, logits["validation"])
    return Teaching(teacher, identity, logits)


def _fine_tune(run: Run, teacher: OpenTeacher, phase: Phase) -> None:
    encoded = run.encoded(teacher.tokenizer, "train")
    targets = torch.from_numpy(run.data.train.labels)
    outcome = train(
        teacher.network,
        TrainingSet(encoded, targets),
        _validation(run, teacher.tokenizer),
        phase.objectives,
        phase.schedule,
        seed=run.spec.seed,
        unit="teacher-0-0",
        arm="teacher",
        stage=0,
        phase=0,
        checkpoints=run.checkpoints,
        report=run.report,
        accelerator=run.accelerator,
        checkpoint_seconds=run.assignment.checkpoint_seconds,
        on_progress=lambda done, total: run.progress(0.8 * done / max(total, 1)),
        deadline=run.deadline,
    )
    run.counters.teacher_training_steps = outcome.steps
    run.report.event(
        "teacher_trained", f"The teacher reached {outcome.best_score:.4f} accuracy on the validation rows."
    )


def _signals(run: Run, teacher: OpenTeacher, identity: str) -> dict[str, NDArray[np.float32]]:
    """The teacher's raw logits of every row (N, C) by split; only rows that nobody asked about before are computed."""
    cache = SignalCache(run.assignment.cache / "signals", run.assignment.cache_bytes)
    template = run.kind.template(run.task)
    found: dict[str, NDArray[np.float32]] = {}
    every_row = sum(len(getattr(run.data, name)) for name in _SPLITS)
    before = 0
    for name in _SPLITS:
        run.check_stop()
        split = getattr(run.data, name)
        keys = row_keys(template, split.texts)
        logits, missing = cache.logits(identity, keys, classes=len(run.data.labels))
        run.counters.cached_signal_rows += len(keys) - len(missing)
        if len(missing):
            encoded = run.kind.encode(teacher.tokenizer, [split.texts[row] for row in missing], run.task.max_length)

            def on_rows(done: int, before: int = before) -> None:
                run.check_stop()
                run.progress(0.8 + 0.2 * (before + done) / every_row)

            logits[missing] = predict_logits(
                teacher.network, encoded, device=run.accelerator.device, on_rows=on_rows
            ).numpy()
            cache.store(identity, [keys[row] for row in missing], logits[missing])
            run.counters.teacher_forward_rows += len(missing)
        before += len(keys)
        found[name] = logits
    return found


def _must_beat_chance(run: Run, logits: NDArray[np.float32]) -> None:
    labels = run.data.validation.labels
    labelled = labels[labels >= 0]
    if not len(labelled):
        return
    accuracy = run.kind.scores(logits, labels)["accuracy"]
    majority = np.bincount(labelled).max() / len(labelled)
    uniform = 1 / len(run.data.labels)
    if accuracy <= uniform:
        raise JobFailure(
            f"the teacher is right on {accuracy:.1%} of the validation rows; guessing is right on {uniform:.1%}",
            code="teacher_at_chance",
            hint="check the labels' names and order, or give the teacher a fine_tune",
            pointer="/teachers/0",
        )
    if accuracy <= majority:
        run.warn(
            "teacher_below_majority",
            f"The teacher is right on {accuracy:.1%} of the validation rows; always answering the commonest label is "
            f"right on {majority:.1%}.",
        )


# --- distil -----------------------------------------------------------------------------------------------------------


def _distil(run: Run, teaching: Teaching) -> tuple[Student, Student, Student | None]:
    """The student before training, after it, and the control (None where there is none)."""
    untrained = _build(run, teaching.teacher)
    wants_control = run.spec.control and bool((run.data.train.labels >= 0).any())
    arms = 2 if wants_control else 1
    distilled = _copy(untrained)
    steps: list[int] = []
    for number, phase in enumerate(run.spec.stages[0].phases):
        steps.append(_train_arm(run, distilled, phase, number, "distilled", teaching, arms, None))
    run.counters.student_training_steps = sum(steps)
    if not wants_control:
        return untrained, distilled, None
    control = _copy(untrained)
    folder = run.cache.folder(
        "controls",
        fingerprint_of(untrained.network, untrained.tokenizer),
        [phase.schedule.model_dump() for phase in run.spec.stages[0].phases],
        steps,
        run.data.hashes,
        run.task.model_dump(),
        run.spec.seed,
    )
    known = Checkpoints(folder).finished("control") if folder.exists() else None
    if known is not None:
        control.network.load_state_dict(known.tensors)
        run.report.event("control_from_cache", "This control was trained before, on the same rows.")
        return untrained, distilled, control
    hard: list[Objective] = [HardLabels(kind="hard_labels")]
    for number, phase in enumerate(run.spec.stages[0].phases):
        twin = Phase(objectives=hard, schedule=phase.schedule)
        run.counters.control_training_steps += _train_arm(
            run, control, twin, number, "control", teaching, arms, steps[number]
        )
    with run.cache.new(folder) as partial:
        Checkpoints(partial).finish("control", control.network.state_dict(), {})
    return untrained, distilled, control


def _train_arm(
    run: Run, student: Student, phase: Phase, number: int, arm: str, teaching: Teaching, arms: int, steps: int | None
) -> int:
    phases = len(run.spec.stages[0].phases)
    before = (number + (phases if arm == "control" else 0)) / (arms * phases)
    outcome = train(
        student.network,
        TrainingSet(
            run.encoded(student.tokenizer, "train"),
            torch.from_numpy(run.data.train.labels),
            torch.from_numpy(teaching.logits["train"]),
        ),
        _validation(run, student.tokenizer),
        phase.objectives,
        phase.schedule,
        seed=run.spec.seed,
        unit=f"{arm}-0-{number}",
        arm=arm,
        stage=0,
        phase=number,
        checkpoints=run.checkpoints,
        report=run.report,
        accelerator=run.accelerator,
        checkpoint_seconds=run.assignment.checkpoint_seconds,
        on_progress=lambda done, total: run.progress(before + done / max(total, 1) / (arms * phases)),
        deadline=run.deadline,
        max_steps=steps,
    )
    run.report.event(
        f"{arm}_trained", f"The {arm} student reached {outcome.best_score:.4f} accuracy on the validation rows."
    )
    return outcome.steps


def _validation(run: Run, tokenizer: Any) -> Callable[[nn.Module], dict[str, float]]:
    encoded = run.encoded(tokenizer, "validation")
    labels = run.data.validation.labels

    def validate(network: nn.Module) -> dict[str, float]:
        return run.kind.scores(predict_logits(network, encoded, device=run.accelerator.device).numpy(), labels)

    return validate


def _copy(student: Student) -> Student:
    return Student(deepcopy(student.network), student.tokenizer)


# --- export -----------------------------------------------------------------------------------------------------------


def _export(run: Run, student: Student) -> Path:
    folder = run.assignment.work / "student"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_onnx(run, folder, student.network, student.tokenizer)
    export.quantize(folder)
    run.progress(0.6)
    return folder


def _export_teacher(run: Run, teaching: Teaching) -> Path:
    """The teacher's export with its latency, which is measured once on this host and kept with it."""
    folder = run.cache.folder("exports", teaching.identity, run.task.model_dump())
    if not folder.exists():
        with run.cache.new(folder) as partial:
            _write_onnx(run, partial, teaching.teacher.network, teaching.teacher.tokenizer)
            latency = evaluation.measure_latency(Runtime.open(partial, precision="fp32"), run.data.test.texts)
            (partial / _LATENCY).write_text(json.dumps(asdict(latency)), "utf-8")
    return folder


def _write_onnx(run: Run, folder: Path, network: nn.Module, tokenizer: Any) -> None:
    network.to("cpu").eval()
    export.write_student(
        folder, network, tokenizer, task=run.task.kind, labels=run.data.labels, max_length=run.task.max_length
    )
    export.to_onnx(network, folder, max_length=run.task.max_length)
    export.check(network, tokenizer, folder, run.data.test.texts[:64])


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _evaluate(
    run: Run,
    teaching: Teaching,
    folder: Path,
    teacher_folder: Path,
    untrained: Student,
    distilled: Student,
    control: Student | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and the test rows on which student and teacher differ.

    The distilled student answers by the runtime that will serve it; the others are judged on the same rows.
    """
    spec, test = run.spec, run.data.test
    measured = evaluation.measure(folder, test.texts, on_rows=_counting(run, 2 * len(test), 0.1, 0.8))
    choice = evaluation.choose_precision(spec.export.precision, measured)
    teacher_logits = teaching.logits["test"]
    size = parameters(distilled.network)
    fp32_bytes = measured["fp32"].bytes

    def answers(student: Student) -> NDArray[np.float32]:
        run.check_stop()
        encoded = run.encoded(student.tokenizer, "test")
        found: NDArray[np.float32] = predict_logits(student.network, encoded, device=run.accelerator.device).numpy()
        return found

    def judged(logits: NDArray[np.float32]) -> dict[str, Any]:
        # The same shape as the distilled student: its size is known, and its speed would be the same.
        alike: dict[Precision, evaluation.Measured] = {"fp32": evaluation.Measured(logits, fp32_bytes, None)}
        return evaluation.arm(
            alike, test.labels, run.data.labels, served="fp32", parameters=size, teacher=teacher_logits
        )

    control_logits = None if control is None else answers(control)
    confidence = spec.promote.gate.confidence if spec.promote is not None else evaluation.CONFIDENCE
    arms = {
        "teacher": evaluation.arm(
            {"fp32": _measured_teacher(teacher_folder, teacher_logits)},
            test.labels,
            run.data.labels,
            served="fp32",
            parameters=parameters(teaching.teacher.network),
        ),
        "distilled": evaluation.arm(
            measured,
            test.labels,
            run.data.labels,
            served=choice.served,
            parameters=size,
            teacher=teacher_logits,
            confidence=confidence,
        ),
        "control": None if control_logits is None else judged(control_logits),
        "untrained": judged(answers(untrained)),
    }
    run.progress(0.95)
    comparisons = evaluation.compare(
        test.labels,
        teacher=teacher_logits.argmax(axis=1),
        distilled=measured[choice.served].predictions,
        distilled_as_control=measured["fp32"].predictions,
        control=None if control_logits is None else control_logits.argmax(axis=1),
        confidence=confidence,
        seed=spec.seed,
    )
    document = evaluation.report(
        rows={name: len(getattr(run.data, name)) for name in _SPLITS},
        labels=run.data.labels,
        arms=arms,
        comparisons=comparisons,
        precision=choice,
        gate=None if spec.promote is None else spec.promote.gate,
        control_reason=None if control is not None else ("no_labels" if spec.control else "disabled"),
        counters=vars(run.counters),
        seconds=run.seconds,
        warnings=run.warnings,
        device=run.assignment.device,
    )
    for arm, table in arms.items():
        if table is not None:
            run.report.metric(arm, 0, 0, "test_accuracy", 0, table["accuracy"])
    differing = evaluation.disagreements(
        test.texts,
        test.labels,
        run.data.labels,
        teacher=teacher_logits,
        student=measured[choice.served].logits,
    )
    return document, differing


def _measured_teacher(folder: Path, logits: NDArray[np.float32]) -> evaluation.Measured:
    latency = evaluation.Latency(**json.loads((folder / _LATENCY).read_text("utf-8")))
    return evaluation.Measured(logits, (folder / FILES["fp32"]).stat().st_size, latency)


def _counting(run: Run, total: int, start: float, end: float) -> Callable[[int], None]:
    done = 0

    def on_rows(more: int) -> None:
        nonlocal done
        done += more
        run.check_stop()
        run.progress(start + (end - start) * done / max(total, 1))

    return on_rows


# --- publish ----------------------------------------------------------------------------------------------------------


def _publish(
    run: Run, teaching: Teaching, folder: Path, document: dict[str, Any], differing: list[dict[str, Any]]
) -> None:
    document["seconds"] = dict(run.seconds)
    export.write_golden(folder, run.data.test.texts)
    export.finish(
        folder,
        document,
        run.spec,
        data=run.data.hashes,
        teacher={"reference": _local_teacher(run.spec).model, "identity": teaching.identity},
        disagreements=differing,
    )
