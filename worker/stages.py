"""From teachers to students: the stages of a job, its control, and what is trained for comparison.

    a stage      the distilled student, taught by the job's teachers or by the student of the stage before
    a chain      several stages; the last one's student is also trained by the job's teachers directly
    generations  a student trained on the labels alone teaches the next of its shape, and so on
    control      the last student's shape and first weights, as many steps, the labels alone

Every arm is a unit of its own for checkpoints. Controls are content-addressed, and shared by jobs.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from models.errors import JobFailure
from models.specs import FEATURES, HardLabels, Objective, Phase, ResolvedStage, SelfTeacher
from models.specs import Student as StudentSpec
from worker.checkpoints import Checkpoints
from worker.features import Features
from worker.folders import fingerprint_of, head_of
from worker.objectives import active, features
from worker.run import Run
from worker.students import Student, build
from worker.teachers import OpenTeacher, find_folder, open_teacher
from worker.teaching import Faculty, Voice, ask, training_set, validation
from worker.training import Past, train


@dataclass
class Other:
    """A student that was trained on the way or for comparison."""

    name: str
    student: Student


@dataclass
class Taught:
    """What the stages have made. `faculty` is who the distilled student is compared with."""

    faculty: Faculty
    untrained: Student
    distilled: Student
    control: Student | None
    others: list[Other] = field(default_factory=list)


@dataclass
class _Work:
    """How many units of training there are, and how many are done: for the progress alone."""

    units: int
    done: int = 0


def original_of(run: Run, voices: Sequence[Voice]) -> OpenTeacher | Student | None:
    """What the first student may be cut from."""
    teacher = run.spec.teachers[0]
    if isinstance(teacher, SelfTeacher):
        if teacher.model is None:
            return None
        return open_teacher(
            find_folder(teacher.model, run.assignment, pointer="/teachers/0/model"),
            run.data.labels,
            head=head_of(run.kind.task),
            fine_tune=True,
            seed=run.spec.seed,
            max_length=run.kind.task.max_length,
        )
    return next((voice.opened for voice in voices if voice.opened is not None), None)


def build_student(run: Run, spec: StudentSpec, original: OpenTeacher | Student | None, stage: int) -> Student:
    pointer = f"/stages/{stage}/student"
    return build(
        spec,
        original,
        run.data.train.inputs,
        run.data.labels,
        head=head_of(run.kind.task),
        seed=run.spec.seed,
        find_folder=lambda text: find_folder(text, run.assignment, pointer=f"{pointer}/model"),
        max_length=run.kind.task.max_length,
        pointer=pointer,
    )


def distil_stages(run: Run, faculty: Faculty | None, original: OpenTeacher | Student | None) -> Taught:
    """Run every stage; `faculty` is None for a student that teaches itself."""
    stages, spec = run.spec.stages, run.spec
    teacher = spec.teachers[0]
    if isinstance(teacher, SelfTeacher):
        return _alone(run, teacher, stages[0], original)
    if faculty is None:
        raise TypeError("there is nobody to teach")
    labelled = bool(run.data.train.labelled.any())
    chain = len(stages) > 1
    work = _Work(sum(len(stage.phases) for stage in stages) + len(stages[-1].phases) * (chain + spec.control))
    teaching, source = faculty, original
    others: list[Other] = []
    for number, stage in enumerate(stages):
        if stage.teacher == "original":
            teaching, source = faculty, original
        untrained = build_student(run, stage.student, source, number)
        distilled = _copy(untrained)
        name = "distilled" if number == len(stages) - 1 else f"stage-{number + 1}"
        steps = _arm(run, distilled, number, stage.phases, name, teaching, work)
        run.counters.student_training_steps += sum(steps)
        if number < len(stages) - 1:
            others.append(Other(f"stage {number + 1}", distilled))
            teaching, source = _as_faculty(run, distilled, f"the student of stage {number + 1}"), distilled
    if chain and (direct := _direct(run, faculty, original, work)) is not None:
        others.append(Other("direct", direct))
    control = None
    if spec.control and labelled:
        control = _control(run, untrained, len(stages) - 1, stages[-1].phases, steps, work)
    return Taught(faculty, untrained, distilled, control, others)


def _alone(run: Run, teacher: SelfTeacher, stage: ResolvedStage, original: OpenTeacher | Student | None) -> Taught:
    untrained = build_student(run, stage.student, original, 0)
    work = _Work(len(stage.phases) * (2 if teacher.ema is not None else 1 + teacher.generations))
    # The generation that nobody taught is the control: it is trained in any case.
    first = _control(run, untrained, 0, stage.phases, None, work)
    control = first if run.spec.control else None
    others: list[Other] = []
    if teacher.ema is not None:
        distilled = _copy(untrained)
        past = Past(deepcopy(distilled.network), teacher.ema)
        steps = _arm(run, distilled, 0, stage.phases, "distilled", None, work, past=past)
        run.counters.student_training_steps = sum(steps)
        average = Student(past.network, distilled.tokenizer, distilled.kept)
        return Taught(_as_faculty(run, average, "the average of its own past"), untrained, distilled, control, others)
    before = first
    for generation in range(1, teacher.generations + 1):
        faculty = _as_faculty(run, before, f"generation {generation - 1}")
        distilled = _copy(untrained)
        last = generation == teacher.generations
        name = "distilled" if last else f"generation-{generation}"
        run.counters.student_training_steps += sum(_arm(run, distilled, 0, stage.phases, name, faculty, work))
        if not last:
            others.append(Other(f"generation {generation}", distilled))
        before = distilled
    return Taught(faculty, untrained, distilled, control, others)


def _as_faculty(run: Run, student: Student, name: str) -> Faculty:
    student.network.eval()
    voice = Voice(name, 1.0, student, fingerprint_of(student.network, student.tokenizer))
    ask(run, voice)
    return Faculty([voice])


def _direct(run: Run, faculty: Faculty, original: OpenTeacher | Student | None, work: _Work) -> Student | None:
    """The last stage without the ones before it: whether the middle was worth it."""
    stage, number = run.spec.stages[-1], len(run.spec.stages) - 1
    try:
        student = build_student(run, stage.student, original, number)
    except JobFailure as error:
        run.warn("no_direct_comparison", f"Going directly could not be compared: {error.message}.")
        return None
    _arm(run, student, number, stage.phases, "direct", faculty, work)
    return student


def _control(
    run: Run, untrained: Student, stage: int, phases: Sequence[Phase], steps: Sequence[int] | None, work: _Work
) -> Student:
    control = _copy(untrained)
    folder = run.cache.folder(
        "controls",
        fingerprint_of(untrained.network, untrained.tokenizer),
        [phase.schedule.model_dump() for phase in phases],
        None if steps is None else list(steps),
        run.data.hashes,
        run.kind.task.model_dump(),
        run.spec.seed,
    )
    known = Checkpoints(folder).finished("control") if folder.exists() else None
    if known is not None:
        control.network.load_state_dict(known.tensors)
        run.report.event("control_from_cache", "This control was trained before, on the same rows.")
        work.done += len(phases)
        return control
    hard: list[Objective] = [HardLabels(kind="hard_labels")]
    twins = [Phase(objectives=hard, schedule=phase.schedule) for phase in phases]
    run.counters.control_training_steps += sum(_arm(run, control, stage, twins, "control", None, work, steps=steps))
    with run.cache.new(folder) as partial:
        Checkpoints(partial).finish("control", control.network.state_dict(), {})
    return control


def _arm(
    run: Run,
    student: Student,
    stage: int,
    phases: Sequence[Phase],
    arm: str,
    faculty: Faculty | None,
    work: _Work,
    *,
    steps: Sequence[int] | None = None,
    past: Past | None = None,
) -> list[int]:
    """Train one student through every phase; the optimizer steps of each. `faculty` None: on the labels alone."""
    encoded = run.encoded(student.tokenizer, "train")
    answers, weights = ((), ()) if faculty is None else faculty.lesson(run, student)
    data = training_set(run, encoded, answers, weights)
    validate = validation(run, student.tokenizer)
    taken = []
    for number, phase in enumerate(phases):
        matching = _matching(run, student, phase, faculty)

        def on_progress(done: int, total: int) -> None:
            run.progress((work.done + done / max(total, 1)) / work.units)

        try:
            outcome = train(
                student.network,
                data,
                validate,
                phase.objectives,
                phase.schedule,
                seed=run.spec.seed,
                unit=f"{arm}-{stage}-{number}",
                arm=arm,
                stage=stage,
                phase=number,
                checkpoints=run.checkpoints,
                report=run.report,
                accelerator=run.accelerator,
                checkpoint_seconds=run.assignment.checkpoint_seconds,
                on_progress=on_progress,
                deadline=run.deadline,
                score=run.kind.primary,
                max_steps=None if steps is None else steps[number],
                matching=matching,
                past=past,
                look_first=faculty is not None,
            )
        finally:
            if matching is not None:
                matching.close()
        work.done += 1
        taken.append(outcome.steps)
        if all(isinstance(one, FEATURES) for one in active(phase.objectives)):
            message = f"The {arm} student has learned from the inside of its teacher."
        else:
            message = f"The {arm} student reached {outcome.best_score:.4f} {run.kind.primary} on the validation rows."
        run.report.event(f"{arm.partition('-')[0]}_trained", message)
    return taken


def _matching(run: Run, student: Student, phase: Phase, faculty: Faculty | None) -> Features | None:
    wanted = features(active(phase.objectives))
    if not wanted:
        return None
    voice = None if faculty is None else faculty.only
    if voice is None or voice.opened is None:
        raise TypeError("feature objectives need one teacher with a network")
    voice.network.to(run.accelerator.device).eval()
    student.network.to(run.accelerator.device)
    kept = None if student.kept is None else torch.from_numpy(student.kept)
    return Features(wanted, student.network, voice.network, seed=run.spec.seed, kept=kept)


def _copy(student: Student) -> Student:
    return Student(deepcopy(student.network), student.tokenizer, student.kept)
