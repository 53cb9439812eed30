"""The whole story of one distillation, top to bottom.

    preflight   the rows, the teachers' files, the students' shapes: what can fail, fails here, in seconds
    teach       fine-tune the teachers if asked; what they say of every row, from the cache where it is known
    distil      stage by stage the distilled student, then its control, and what else it is compared with
    export      the student to ONNX, fp32 and int8; the teachers too, once, so that they are measured alike
    evaluate    every arm on the same held-out rows; the precision that is served; the gate
    publish     the folder with its manifest, ready for the store

Knows no database, queue or web: it has an `Assignment`, tells a `Report`, and returns a folder.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from models import gates
from models.artifacts import Origin
from models.errors import JobFailure
from models.inputs import Input
from models.runtime import FILES, Precision, Runtime
from models.specs import RecordedTeacher
from worker import evaluation, export, preflight
from worker.asking import make_accelerator, predict
from worker.cache import HostCache
from worker.card import write_card
from worker.cascade import Answered, cascade
from worker.checkpoints import Checkpoints
from worker.features import check as check_features
from worker.measuring import (
    Candidate,
    Choice,
    Latency,
    Measured,
    choose_precision,
    measure,
    measure_all,
    measure_latency,
    open_candidates,
)
from worker.objectives import active, features
from worker.protocol import Assignment, Report
from worker.provenance import checkpoints, provenance
from worker.rehearsal import rehearse
from worker.run import SPLITS, Run
from worker.slices import slices, tokens_of
from worker.stages import Taught, build_student, distil_stages, original_of
from worker.statistics import CONFIDENCE
from worker.students import Student, parameters
from worker.tasks import for_task
from worker.teachers import OpenTeacher, find_folder
from worker.teaching import Faculty, Voice, layout, open_voices, teach

_LATENCY = "latency.json"
_CALIBRATION_ROWS = 100
_PROBE = 8


def distil(assignment: Assignment, report: Report) -> Path:
    """Run the job; the folder of its finished student. Raises `JobFailure`, or `Stopped` when `report` asks for it."""
    report.phase("preflight")
    started = time.monotonic()
    run, voices = _preflight(assignment, report)
    named = checkpoints(run.spec, lambda reference: find_folder(reference, assignment))
    run.seconds["preflight"] = round(time.monotonic() - started, 2)
    with run.in_phase("teach"):
        faculty = teach(run, voices) if voices else None
    with run.in_phase("distil"):
        taught = distil_stages(run, faculty, original_of(run, [] if faculty is None else faculty.voices))
    with run.in_phase("export"):
        folder = _export(run, taught.distilled)
        exported = [_export_teacher(run, voice) for voice in taught.faculty.voices]
    with run.in_phase("evaluate"):
        document, differing = _evaluate(run, taught, folder, exported)
    with run.in_phase("publish"):
        _publish(run, taught.faculty, named, folder, document, differing)
    report.progress(1.0, 0.0)
    return folder


# --- preflight --------------------------------------------------------------------------------------------------------


def _preflight(assignment: Assignment, report: Report) -> tuple[Run, list[Voice]]:
    spec = assignment.spec
    kind = for_task(spec.task)
    recorded = [teacher.column for teacher in spec.teachers if isinstance(teacher, RecordedTeacher)]
    data = kind.read(
        spec.dataset, assignment.datasets, seed=spec.seed, recorded=recorded, slices=spec.evaluation.slices
    )
    run = Run(
        assignment,
        report,
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
    voices = open_voices(run)
    original = original_of(run, voices)
    # Every student is built once before anything is trained: an impossible shape must not cost an hour of teaching.
    source = original
    seconds = 0.0
    for number, stage in enumerate(spec.stages):
        if stage.teacher == "original":
            source = original
        student = build_student(run, stage.student, source, number)
        _check_phases(run, number, student, source if source is not None else student)
        _check_memory(run, number, student, source)
        seconds += rehearse(run, student, stage.phases, None if source is None else source.network)
        source = student
    for code, message in preflight.row_warnings(run.kind, data, run.encoded(student.tokenizer, "train")):
        run.warn(code, message)
    for code, message in preflight.time_warnings(seconds, spec.max_seconds):
        run.warn(code, message)
    teachers = sum(parameters(voice.network)[0] for voice in voices if voice.network is not None)
    report.event(
        "preflight_passed",
        f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test rows; "
        f"{len(data.labels)} labels; teachers {teachers:,} and student {parameters(student.network)[0]:,} parameters. "
        f"Training the student takes about {seconds:.0f} s.",
    )
    return run, voices


def _check_phases(run: Run, stage: int, student: Student, teacher: OpenTeacher | Student) -> None:
    """Whether every feature objective of a stage can look into both networks."""
    for number, phase in enumerate(run.spec.stages[stage].phases):
        wanted = features(active(phase.objectives))
        if not wanted:
            continue
        if student.kept is None:
            raise JobFailure(
                f"{wanted[0].kind} compares position by position, and the student cuts texts into other tokens",
                code="tokenizers_differ",
                hint="use a from_teacher or fresh student, or objectives on the answers alone",
                pointer=f"/stages/{stage}/phases/{number}",
            )
        places = [place for place, one in enumerate(phase.objectives) if one in wanted]
        at = [f"/stages/{stage}/phases/{number}/objectives/{place}" for place in places]
        check_features(wanted, student.network, teacher.network, pointer=at.__getitem__)


def _check_memory(run: Run, stage: int, student: Student, teacher: OpenTeacher | Student | None) -> None:
    """Whether a stage fits: what cannot is refused now, what may not is said."""
    config, phases = student.network.config, run.spec.stages[stage].phases
    # Answers come from the cache; a teacher is in memory only while somebody looks inside it.
    online = teacher is not None and any(features(active(phase.objectives)) for phase in phases)
    needed = preflight.memory_estimate(
        student=parameters(student.network)[0],
        teachers=parameters(teacher.network)[0] if online and teacher is not None else 0,
        tokens=max(phase.schedule.micro_batch_tokens or phase.schedule.batch_tokens for phase in phases),
        longest=int(run.encoded(student.tokenizer, "train").lengths.max()),
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
    )
    for code, message in preflight.check_memory(needed, preflight.available_memory(run.accelerator.device)):
        run.warn(code, message)


# --- export -----------------------------------------------------------------------------------------------------------


def _export(run: Run, student: Student) -> Path:
    folder = run.assignment.work / "student"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_onnx(run, folder, student.network, student.tokenizer)
    _calibrated(run).unlink(missing_ok=True)
    try:
        export.quantize(folder)
        if run.spec.export.precision != "fp32":
            export.calibrate(folder, _some(run.data.train.inputs, _CALIBRATION_ROWS), _calibrated(run))
    except JobFailure as failure:  # what fp32 can do must not be lost for it
        run.warn(failure.code, f"{failure.message}; it is served without.")
    run.progress(0.6)
    return folder


def _calibrated(run: Run) -> Path:
    """Where the second int8 file waits for the choice; the folder is published with one."""
    return run.assignment.work / "calibrated.onnx"


def _some(inputs: Sequence[Input], most: int) -> list[Input]:
    return [inputs[row] for row in np.linspace(0, len(inputs) - 1, min(most, len(inputs))).astype(int)]


def _choose(run: Run, student: Student, folder: Path) -> tuple[Choice, Measured]:
    """The precision that is served, by the validation rows, and what it said of them; one int8 file at most is left in
    `folder`."""
    kind, split = run.kind, run.data.validation
    own = folder / FILES["int8"]
    files: dict[Candidate, Path] = {
        "fp32": folder / FILES["fp32"],
        "int8-dynamic": own,
        "int8-static": _calibrated(run),
    }
    runtimes, damaged = open_candidates(folder, files, split.inputs[:_PROBE])
    for reason in damaged.values():
        run.warn("int8_damaged", f"{reason[0].upper()}{reason[1:]}; it is not served.")
    counting = _counting(run, len(runtimes) * len(split), 0.0, 0.1)
    measured = measure_all(runtimes, kind, run.encoded(student.tokenizer, "validation"), split.inputs, on_rows=counting)
    choice = choose_precision(run.spec.export.precision, kind, split, measured, damaged, seed=run.spec.seed)
    match choice.int8:
        case None:
            own.unlink(missing_ok=True)
        case "int8-static":
            shutil.move(files["int8-static"], own)
        case _:
            pass
    return choice, measured[choice.candidate]


def _export_teacher(run: Run, voice: Voice) -> Path | None:
    """A teacher's export with its latency, which is measured once on this host and kept with it."""
    if voice.opened is None:
        return None
    folder = run.cache.folder("exports", voice.identity, run.kind.task.model_dump())
    if not folder.exists():
        with run.cache.new(folder) as partial:
            _write_onnx(run, partial, voice.network, voice.tokenizer)
            latency = measure_latency(Runtime.open(partial, precision="fp32"), run.data.test.inputs)
            (partial / _LATENCY).write_text(json.dumps(asdict(latency)), "utf-8")
    if run.spec.export.teacher:
        _publishable(run, folder)
    return folder


def _publishable(run: Run, folder: Path) -> None:
    """A copy of a teacher's export as an artifact. The cache may drop `folder` before it is published."""
    target = run.assignment.teacher_export
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(_LATENCY))
    export.finish_teacher(target, run.data.test.inputs, run.kind.task)


def _write_onnx(run: Run, folder: Path, network: nn.Module, tokenizer: Any) -> None:
    network.to("cpu").eval()
    task = run.kind.task
    export.write_student(folder, network, tokenizer, task=task, labels=run.data.labels, extra=run.kind.serving())
    export.to_onnx(network, folder, max_length=task.max_length)
    export.check(network, tokenizer, folder, run.data.test.inputs[:64])


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _evaluate(
    run: Run, taught: Taught, folder: Path, exported: Sequence[Path | None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and the test rows on which student and teacher differ.

    The distilled student answers by the runtime that will serve it; the others are judged on the same rows.
    """
    spec, test, kind, labels = run.spec, run.data.test, run.kind, run.data.labels
    student = taught.distilled
    own_cut = run.encoded(student.tokenizer, "test")
    choice, on_validation = _choose(run, student, folder)
    measured = measure(folder, kind, own_cut, test.inputs, on_rows=_counting(run, 2 * len(test), 0.1, 0.8))
    teacher = _teacher(run, taught.faculty, exported)
    size = parameters(student.network)
    confidence = spec.promote.gate.confidence if spec.promote is not None else CONFIDENCE

    def asked(one: Student) -> Measured:
        run.check_stop()
        encoded = run.encoded(one.tokenizer, "test")
        # In one precision, whatever the device would choose: two networks that are the same must answer the same.
        answers = predict(one.network, encoded, shape=kind.shape, device=run.accelerator.device, precision="fp32")
        # Of the distilled student's shape the size is known, and the speed would be the same.
        alike = measured["fp32"].bytes if parameters(one.network) == size else None
        return Measured.of(kind, answers, encoded, test.inputs, bytes=alike)

    def judged(
        one: Mapping[Precision, Measured], of: tuple[int, int] | None, *, served: Precision = "fp32"
    ) -> dict[str, Any]:
        return evaluation.arm(
            kind,
            one,
            test,
            labels,
            served=served,
            parameters=of,
            teacher=None if one["fp32"] is teacher else teacher,
            confidence=confidence,
            seed=spec.seed,
        )

    control = None if taught.control is None else asked(taught.control)
    others: dict[str, tuple[Measured, tuple[int, int] | None]] = {
        one.name: (asked(one.student), parameters(one.student.network)) for one in taught.others
    }
    if len(taught.faculty.voices) > 1:
        for place, voice in enumerate(taught.faculty.voices):
            found = _measured_voice(run, voice, exported[place])
            others[f"teacher {place + 1}"] = found, _size([voice])
    untrained = asked(taught.untrained)
    arms = {
        "teacher": judged({"fp32": teacher}, _size(taught.faculty.voices)),
        "distilled": judged(measured, size, served=choice.served),
        "control": None if control is None else judged({"fp32": control}, size),
        "untrained": judged({"fp32": untrained}, size),
    }
    run.progress(0.8)
    comparisons = evaluation.compare(
        kind,
        test,
        teacher=teacher.predictions,
        distilled=measured[choice.served].predictions,
        distilled_as_control=asked(student).predictions if control is not None or others else None,
        control=None if control is None else control.predictions,
        others={name: one.predictions for name, (one, _) in others.items()},
        confidence=confidence,
        seed=spec.seed,
    )
    parts = slices(
        kind,
        test,
        labels,
        arms={
            "teacher": teacher.predictions,
            "distilled": measured[choice.served].predictions,
            "control": None if control is None else control.predictions,
            "untrained": untrained.predictions,
        },
        lengths=tokens_of(own_cut, len(test)),
        columns=run.data.slices,
        confidence=confidence,
        seed=spec.seed,
    )
    run.progress(0.9)
    document = evaluation.report(
        kind,
        rows={name: len(run.split(name)) for name in SPLITS},
        labels=labels,
        arms=arms,
        others={name: judged({"fp32": one}, of) for name, (one, of) in others.items()},
        constant=kind.constant(test, labels),
        comparisons=comparisons,
        slices=parts,
        cascade=_cascade(run, taught, on_validation, measured[choice.served], teacher, confidence),
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
            run.report.metric(arm, 0, 0, f"test_{kind.primary}", 0, table["score"])
    differing = evaluation.disagreements(kind, test, labels, teacher=teacher, student=measured[choice.served])
    return document, differing


def _cascade(
    run: Run, taught: Taught, on_validation: Measured, student: Measured, teacher: Measured, confidence: float
) -> dict[str, Any] | None:
    """Student and teacher together; both measurements of the student are at the precision that is served."""
    kind = run.kind
    if kind.shape != "text" or kind.nature != "one_of":
        return None
    return cascade(
        Answered(
            taught.faculty.together("validation", kind.nature).values,
            on_validation.answers.values,
            run.data.validation.targets,
        ),
        Answered(teacher.answers.values, student.answers.values, run.data.test.targets),
        confidence=confidence,
    )


def _teacher(run: Run, faculty: Faculty, exported: Sequence[Path | None]) -> Measured:
    """The teachers as one. An ensemble costs what its members cost together; recorded answers cost nothing here."""
    split = run.data.test
    parts = [_measured_voice(run, voice, folder) for voice, folder in zip(faculty.voices, exported, strict=True)]
    if len(parts) == 1:
        return parts[0]
    latencies = [part.latency for part in parts if part.latency is not None]
    latency = None
    if len(latencies) == len(parts):
        latency = Latency(
            p50_ms=sum(one.p50_ms for one in latencies),
            p95_ms=sum(one.p95_ms for one in latencies),
            p99_ms=sum(one.p99_ms for one in latencies),
            texts_per_second=1 / sum(1 / one.texts_per_second for one in latencies),
        )
    sizes = [part.bytes for part in parts]
    return Measured.of(
        run.kind,
        faculty.together("test", run.kind.nature),
        layout(run, faculty, "test"),
        split.inputs,
        bytes=None if None in sizes else sum(size or 0 for size in sizes),
        latency=latency,
    )


def _measured_voice(run: Run, voice: Voice, folder: Path | None) -> Measured:
    encoded = layout(run, Faculty([voice]), "test")
    inputs = run.data.test.inputs
    if folder is None:
        return Measured.of(run.kind, voice.answers["test"], encoded, inputs)
    latency = Latency(**json.loads((folder / _LATENCY).read_text("utf-8")))
    size = (folder / FILES["fp32"]).stat().st_size
    return Measured.of(run.kind, voice.answers["test"], encoded, inputs, bytes=size, latency=latency)


def _size(voices: Sequence[Voice]) -> tuple[int, int] | None:
    sizes = [parameters(voice.network) for voice in voices if voice.network is not None]
    return (sum(one[0] for one in sizes), sum(one[1] for one in sizes)) if sizes else None


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
    run: Run,
    faculty: Faculty,
    named: Mapping[str, Origin],
    folder: Path,
    document: dict[str, Any],
    differing: list[dict[str, Any]],
) -> None:
    document["seconds"] = dict(run.seconds)
    export.write_golden(folder, run.data.test.inputs)
    made = provenance(
        named,
        [(voice.name, voice.identity) for voice in faculty.voices],
        run.data.hashes,
        seed=run.spec.seed,
        device=run.assignment.device,
        report=export.write_report(folder, document, differing),
    )
    write_card(folder, document, run.spec, made)
    export.finish(
        folder,
        run.spec,
        served=document["precision"]["served"],
        data=made.data,
        teachers=made.teachers,
        bases=made.bases,
        seeds=made.seeds,
        versions=made.versions,
        hardware=made.hardware,
    )
