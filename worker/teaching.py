"""The teachers of a job: opened, trained where they have to be, and asked for what they say of every row.

A `Voice` is one network, or one column of recorded answers; a `Faculty` is all that teach one student together. What a
network says is kept by `worker.signals`, so that only rows that nobody asked about before are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from models.errors import JobFailure
from models.inputs import canonical
from models.specs import HardLabels, LocalTeacher, Phase, RecordedTeacher
from worker import export
from worker.asking import predict
from worker.data import Answers, Encoded
from worker.folders import fingerprint_of, head_of
from worker.outputs import TrainingSet
from worker.run import SPLITS, Run
from worker.signals import SignalCache, row_keys
from worker.students import Student
from worker.teachers import OpenTeacher, find_folder, open_teacher
from worker.training import train


@dataclass
class Voice:
    """One who answers. `answers` are by split, on the voice's own cut of the rows."""

    name: str
    weight: float
    opened: OpenTeacher | Student | None
    identity: str
    answers: dict[str, Answers] = field(default_factory=dict)

    @property
    def network(self) -> Any:
        return None if self.opened is None else self.opened.network

    @property
    def tokenizer(self) -> Any:
        return None if self.opened is None else self.opened.tokenizer


@dataclass
class Faculty:
    """All that teach one student."""

    voices: list[Voice]
    combine: Literal["probabilities", "logits"] = "probabilities"

    @property
    def only(self) -> Voice | None:
        return self.voices[0] if len(self.voices) == 1 else None

    @property
    def original(self) -> Voice | None:
        """The first that has a network: what a student may be cut from."""
        return next((voice for voice in self.voices if voice.opened is not None), None)

    def together(self, split: str, nature: str) -> Answers:
        """What they say of a split as one: logits whose softmax is the combined distribution."""
        parts = [voice.answers[split] for voice in self.voices]
        if len(parts) == 1:
            return parts[0]
        weights = np.array([voice.weight for voice in self.voices])
        weights = weights / weights.sum()
        if len({len(part.values) for part in parts}) > 1:
            raise JobFailure(
                "the teachers cut a context into different tokens, so that their places cannot be combined",
                code="tokenizers_differ",
                hint="use teachers with one tokenizer",
                pointer="/teachers",
            )
        stacked = np.stack([part.values.astype(np.float64) for part in parts])
        if self.combine == "logits" or nature == "number":
            mixed = np.tensordot(weights, stacked, axes=1)
        elif nature == "any_of":
            shares = np.tensordot(weights, 1 / (1 + np.exp(-stacked)), axes=1).clip(1e-12, 1 - 1e-12)
            mixed = np.log(shares) - np.log1p(-shares)
        else:
            mixed = logsumexp(log_softmax(stacked, axis=-1), axis=0, b=weights[:, None, None])
        return replace(parts[0], values=mixed.astype(np.float32))

    def lesson(self, run: Run, student: Student) -> tuple[tuple[Answers, ...], tuple[float, ...]]:
        """What each voice says of the training rows as `student` cuts them, and how much it counts."""
        found = []
        for voice in self.voices:
            if run.kind.shape != "span" or voice.opened is None:
                found.append(voice.answers["train"])
            else:
                found.append(_on_the_cut_of(run, voice, student))
        return tuple(found), tuple(voice.weight for voice in self.voices)


# --- preflight --------------------------------------------------------------------------------------------------------


def open_voices(run: Run) -> list[Voice]:
    """Every teacher of the spec that has a network or a column; a student that teaches itself has none yet."""
    voices = []
    for place, teacher in enumerate(run.spec.teachers):
        pointer = f"/teachers/{place}"
        if isinstance(teacher, LocalTeacher):
            opened = open_teacher(
                find_folder(teacher.model, run.assignment, pointer=f"{pointer}/model"),
                run.data.labels,
                head=head_of(run.kind.task),
                fine_tune=teacher.fine_tune is not None,
                seed=run.spec.seed,
                renamed=teacher.labels,
                max_length=run.kind.task.max_length,
                pointer=pointer,
            )
            voices.append(Voice(teacher.model, teacher.weight, opened, opened.identity))
        elif isinstance(teacher, RecordedTeacher):
            voices.append(_recorded(run, teacher, pointer))
    return voices


def _recorded(run: Run, teacher: RecordedTeacher, pointer: str) -> Voice:
    names = teacher.labels or list(run.data.labels)
    if sorted(names) != sorted(run.data.labels):
        raise JobFailure(
            f"the recorded labels ({', '.join(names[:8])}) are not the data's ({', '.join(run.data.labels[:8])})",
            code="labels_disagree",
            hint="say in labels which label each number stands for, in order",
            pointer=f"{pointer}/labels",
        )
    order = [names.index(label) for label in run.data.labels]
    voice = Voice(f"column {teacher.column}", teacher.weight, None, "")
    for split in SPLITS:
        values = run.data.recorded[teacher.column][split]
        if values.shape[1] != len(names):
            raise JobFailure(
                f"the column {teacher.column!r} has {values.shape[1]} numbers in a row for {len(names)} labels",
                code="bad_recorded",
                pointer=pointer,
            )
        if split != "train" and np.isnan(values).any():
            raise JobFailure(
                f"{int(np.isnan(values).any(axis=1).sum())} {split} rows have no recorded answer",
                code="recorded_missing",
                hint="every validation and test row needs one, so that the teacher can be judged",
                pointer=pointer,
            )
        values = values[:, order]
        if teacher.probabilities is not None:
            if (values < 0).any() or (np.abs(np.nansum(values, axis=1) - 1) > 0.01)[
                ~np.isnan(values).any(axis=1)
            ].any():
                raise JobFailure(
                    f"the column {teacher.column!r} holds numbers that are no probabilities",
                    code="bad_recorded",
                    hint="they are 0 or more and add up to 1; raw scores go under logits",
                    pointer=f"{pointer}/probabilities",
                )
            values = np.log(values.clip(1e-7, 1.0))
        voice.answers[split] = Answers.whole(values.astype(np.float32))
    return voice


# --- teach ------------------------------------------------------------------------------------------------------------


def teach(run: Run, voices: Sequence[Voice]) -> Faculty:
    """Train what has to be trained, ask for every row, and see that the result is better than a guess."""
    ready = []
    for place, opened in enumerate(voices):
        teacher, voice = run.spec.teachers[place], opened
        if isinstance(teacher, LocalTeacher) and teacher.fine_tune is not None:
            voice = _fine_tuned(run, voice, teacher, place)
        if voice.opened is not None:
            ask(run, voice, done=(place + 0.8) / len(voices), share=0.2 / len(voices))
        ready.append(voice)
    faculty = Faculty(ready, run.spec.combine or "probabilities")
    must_beat_chance(run, faculty)
    return faculty


def _fine_tuned(run: Run, voice: Voice, teacher: LocalTeacher, place: int) -> Voice:
    if not isinstance(voice.opened, OpenTeacher) or teacher.fine_tune is None:
        raise TypeError("only a local teacher is trained")
    opened, task, spec = voice.opened, run.kind.task, run.spec
    folder = run.cache.folder(
        "teachers", opened.identity, teacher.fine_tune.model_dump(), run.data.hashes, task.model_dump(), spec.seed
    )
    if (folder / "config.json").exists():
        run.report.event("teacher_from_cache", "This teacher was fine-tuned before, on the same rows.")
        opened = open_teacher(
            folder, run.data.labels, head=head_of(task), fine_tune=False, seed=spec.seed, max_length=task.max_length
        )
    else:
        phase = Phase(objectives=[HardLabels(kind="hard_labels")], schedule=teacher.fine_tune)
        _fine_tune(run, opened, phase, place)
        with run.cache.new(folder) as partial:
            export.write_student(
                partial, opened.network, opened.tokenizer, task=task, labels=run.data.labels, extra=run.kind.serving()
            )
    return Voice(voice.name, voice.weight, opened, fingerprint_of(opened.network, opened.tokenizer))


def _fine_tune(run: Run, teacher: OpenTeacher, phase: Phase, place: int) -> None:
    encoded = run.encoded(teacher.tokenizer, "train")
    teachers = len(run.spec.teachers)
    outcome = train(
        teacher.network,
        training_set(run, encoded),
        validation(run, teacher.tokenizer),
        phase.objectives,
        phase.schedule,
        seed=run.spec.seed,
        unit=f"teacher-{place}-0",
        arm="teacher",
        stage=0,
        phase=place,
        checkpoints=run.checkpoints,
        report=run.report,
        accelerator=run.accelerator,
        checkpoint_seconds=run.assignment.checkpoint_seconds,
        on_progress=lambda done, total: run.progress((place + 0.8 * done / max(total, 1)) / teachers),
        deadline=run.deadline,
        score=run.kind.primary,
    )
    run.counters.teacher_training_steps += outcome.steps
    run.report.event(
        "teacher_trained",
        f"The teacher reached {outcome.best_score:.4f} {run.kind.primary} on the validation rows.",
    )


def training_set(
    run: Run, encoded: Encoded, teachers: tuple[Answers, ...] = (), weights: tuple[float, ...] = ()
) -> TrainingSet:
    targets: Tensor = run.kind.targets(run.data.train, encoded)
    combine = run.spec.combine or "probabilities"
    return TrainingSet(encoded, targets, teachers, weights, combine, run.kind.shape, run.kind.nature)


def validation(run: Run, tokenizer: Any) -> Any:
    """A function that scores a network on the validation rows."""
    encoded, split = run.encoded(tokenizer, "validation"), run.data.validation

    def validate(network: Any) -> dict[str, float]:
        answers = predict(network, encoded, shape=run.kind.shape, device=run.accelerator.device)
        return run.kind.scores(run.kind.predictions(answers, encoded, split.inputs), split)

    return validate


def ask(run: Run, voice: Voice, *, done: float = 0.0, share: float = 0.0) -> None:
    """Fill `voice.answers` for every split."""
    every_row = sum(len(run.split(name)) for name in SPLITS)
    before = 0
    for name in SPLITS:
        run.check_stop()
        encoded = run.encoded(voice.tokenizer, name)

        def on_rows(rows: int, before: int = before) -> None:
            run.check_stop()
            if share:
                run.progress(done + share * (before + rows) / every_row)

        voice.answers[name] = _signals(run, voice, encoded, _keys(run, encoded, name), on_rows)
        before += len(encoded)


def _keys(run: Run, encoded: Encoded, split: str) -> list[str]:
    """The key of each encoding; where places are tokens, their cut is part of it."""
    inputs = run.split(split).inputs
    template = run.kind.template()
    if encoded.rows is None and run.kind.shape != "span":
        return row_keys(template, [canonical(item) for item in inputs])
    rows = encoded.rows if encoded.rows is not None else np.arange(len(inputs))
    return row_keys(
        template,
        [
            f"{canonical(inputs[row])}\0{encoded.ids[place].tobytes().hex()}\0{encoded.offsets[place].tobytes().hex()}"
            if encoded.offsets is not None
            else canonical(inputs[row])
            for place, row in enumerate(rows)
        ],
    )


def _signals(
    run: Run, voice: Voice, encoded: Encoded, keys: Sequence[str], on_rows: Any, kept: NDArray[np.int64] | None = None
) -> Answers:
    """The voice's raw logits of every encoding; only those that nobody asked about before are computed."""
    cache = SignalCache(run.assignment.cache / "signals", run.assignment.cache_bytes)
    width = int(voice.network.config.num_labels) if run.kind.shape != "span" else 2
    places = [1] * len(encoded) if encoded.places is None else [len(one) for one in encoded.places]
    known = [
        values.reshape(-1, width) if values is not None and len(values) == width * count else None
        for values, count in zip(cache.known(voice.identity, keys), places, strict=True)
    ]
    missing = [row for row, values in enumerate(known) if values is None]
    run.counters.cached_signal_rows += len(keys) - len(missing)
    if missing:
        part = subset(encoded, missing)
        if kept is not None:
            part = replace(part, ids=[kept[ids].astype(np.int32) for ids in part.ids], pad_id=int(kept[part.pad_id]))
        answers = predict(voice.network, part, shape=run.kind.shape, device=run.accelerator.device, on_rows=on_rows)
        found = [answers[place] for place in range(len(missing))]
        cache.store(voice.identity, [keys[row] for row in missing], found)
        run.counters.teacher_forward_rows += len(missing)
        for row, values in zip(missing, found, strict=True):
            known[row] = values
    return Answers.of([values for values in known if values is not None], width)


def subset(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """The encodings `rows`, in this order."""

    def of(parts: list[NDArray[np.int32]] | None) -> list[NDArray[np.int32]] | None:
        return None if parts is None else [parts[row] for row in rows]

    at = np.array(rows, np.int64)
    return Encoded(
        [encoded.ids[row] for row in rows],
        encoded.lengths[at],
        encoded.pad_id,
        of(encoded.types),
        None if encoded.rows is None else encoded.rows[at],
        of(encoded.places),
        of(encoded.offsets),
    )


def _on_the_cut_of(run: Run, voice: Voice, student: Student) -> Answers:
    """What a network says of the training rows cut into the student's tokens, all of which it knows."""
    if student.kept is None:
        raise JobFailure(
            "the student cuts a context into other tokens than its teacher, so that their places cannot be compared",
            code="tokenizers_differ",
            hint="use a from_teacher or fresh student, or hard_labels alone",
            pointer="/stages/0/student",
        )
    encoded = run.encoded(student.tokenizer, "train")
    translated = replace(encoded, ids=[student.kept[ids].astype(np.int32) for ids in encoded.ids])
    keys = _keys(run, translated, "train")
    return _signals(run, voice, encoded, keys, lambda _: run.check_stop(), student.kept)


def must_beat_chance(run: Run, faculty: Faculty) -> None:
    """Raises `JobFailure` (`teacher_at_chance`) if the teachers together are no better than a guess."""
    split = run.data.validation
    encoded = layout(run, faculty, "validation")
    predictions = run.kind.predictions(faculty.together("validation", run.kind.nature), encoded, split.inputs)
    reached = run.kind.scores(predictions, split)[run.kind.primary]
    guess = run.kind.chance(split, run.data.labels)
    if reached <= guess:
        message = f"the teacher reaches {reached:.3f} {run.kind.primary} on the validation rows; guessing, {guess:.3f}"
        if any(isinstance(teacher, LocalTeacher) and teacher.at_chance for teacher in run.spec.teachers):
            run.warn("teacher_at_chance", f"{message[0].upper()}{message[1:]}; the job asked to go on.")
            return
        raise JobFailure(
            message,
            code="teacher_at_chance",
            hint='check the labels\' names and order, give the teacher a fine_tune, or say "at_chance": true',
            pointer="/teachers/0",
        )
    constant = run.kind.constant(split, run.data.labels)
    if constant is not None and reached <= constant[run.kind.primary]:
        run.warn(
            "teacher_below_majority",
            f"The teacher reaches {reached:.3f} {run.kind.primary} on the validation rows; always answering the same, "
            f"{constant[run.kind.primary]:.3f}.",
        )


def layout(run: Run, faculty: Faculty, split: str) -> Encoded:
    """How the answers of `Faculty.together` lie: as the first network cuts the rows."""
    original = faculty.original
    if original is not None:
        return run.encoded(original.tokenizer, split)
    count = len(run.split(split))
    return Encoded([np.zeros(1, np.int32)] * count, np.ones(count, np.int64), 0)
