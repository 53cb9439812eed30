"""The benchmark's specs, its table and its way of going on. Nothing is trained here."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.cells import MODEL, PRESETS, STUDENTS_OF_THE_FULL_SET, TASKS, Cell, cells, small
from benchmarks.methods import Notes, chosen, collect, outstanding, run_all, run_cell
from benchmarks.results import Result, best_preset, render, specs_of
from benchmarks.rows import prepare
from models import references
from models.specs import FEATURES, HardLabels, LogitDistance, SoftTargets, parse_job, resolve

OBJECTIVES = (HardLabels, LogitDistance, SoftTargets, *FEATURES)
EVERY = cells(range(3), best="minilm")


def named(name: str) -> Cell:
    return next(cell for cell in EVERY if cell.name == name)


def arm(score: float, parameters: int = 22_700_000) -> dict[str, object]:
    return {"score": score, "parameters": parameters}


def result(cell: Cell, *, score: float = 0.9, gain: float = 0.02, error: str | None = None, **others: float) -> Result:
    difference = {"value": gain, "low": gain - 0.01, "high": gain + 0.01}
    report = {
        "metric": "accuracy",
        "rows": {"train": 10_000, "validation": 100, "test": 872},
        "arms": {
            "teacher": arm(0.93),
            "distilled": arm(score, 8_700_000),
            "control": arm(score - gain, 8_700_000),
            "untrained": arm(0.5, 8_700_000),
        },
        "others": {name: arm(value) for name, value in others.items()},
        "comparisons": {
            "gain_over_control": difference,
            "mcnemar_p": {"distilled_against_control": 0.031},
            "others": dict.fromkeys(others, difference),
        },
        "host": {"cpu": "a processor", "cores": 2},
    }
    return Result(
        name=cell.name,
        spec=cell.spec,
        report=None if error else report,
        error=error,
        validation=None if error else score,
        training_seconds=60.0,
        device="cpu",
        date="2025-06-01",
        versions={"torch": "2.0"},
    )


class TestCells:
    @pytest.mark.parametrize("cell", cells([0], best="tinybert"), ids=lambda cell: cell.name)
    def test_each_is_a_job_that_can_be_sent(self, cell):
        resolved = resolve(parse_job(cell.spec))
        assert resolved.seed == cell.spec["seed"]
        assert all(stage.phases for stage in resolved.stages)

    def test_names_are_unique_and_so_are_their_files(self):
        assert Counter(cell.name for cell in EVERY).most_common(1)[0][1] == 1
        assert len({cell.file for cell in EVERY}) == len(EVERY)

    def test_the_teachers_that_are_named_are_made_first(self):
        made = {}
        for cell in EVERY:
            files = {one["model"] for one in cell.spec["teachers"] if one.get("model", "").startswith("file:")}
            assert files == {f"file:{made[name]}" for name in cell.needs}
            if cell.makes:
                made[cell.name] = cell.makes

    def test_every_preset_has_as_many_epochs(self):
        total = {
            preset: sum(phase.schedule.epochs for phase in resolve(parse_job(cell.spec)).stages[0].phases)
            for preset in PRESETS
            for cell in [named(f"sst2/{preset}/62 % fewer/seed-0")]
        }
        assert set(total.values()) == {6}

    @pytest.mark.parametrize(
        ("size", "fewer"), [("62 % fewer", 0.62), ("75 % fewer", 0.75), ("75 % fewer, half the FFN", 0.75)]
    )
    def test_students_are_as_small_as_their_names_say(self, size, fewer, tmp_path):
        config = references.read_config(references.parse(MODEL), tmp_path)
        assert config is not None
        student = STUDENTS_OF_THE_FULL_SET[size]
        shape = {"num_hidden_layers": len(student["layers"]), "vocab_size": student["vocabulary"]}
        if "intermediate_size" in student:
            shape["intermediate_size"] = student["intermediate_size"]

        def parameters(**changes: int) -> int:
            with torch.device("meta"):
                network = AutoModelForSequenceClassification.from_config(BertConfig(**{**config, **changes}))
            return sum(one.numel() for one in network.parameters())

        assert 1 - parameters(**shape) / parameters() == pytest.approx(fewer, abs=0.006)

    def test_a_try_out_caps_training_rows_alone(self):
        cell = small(named("sst2/hinton/62 % fewer/seed-0"), 50)
        assert cell.spec["dataset"]["limit"] == 50
        assert {**cell.spec, "dataset": None} == {**named(cell.name).spec, "dataset": None}


class TestTable:
    def test_a_row_has_the_mean_over_its_seeds_and_each_seeds_gain(self):
        group = [cell for cell in EVERY if cell.group == "sst2/hinton/62 % fewer"]
        scores = (0.90, 0.91, 0.92)
        results = {cell.name: result(cell, score=score) for cell, score in zip(group, scores, strict=True)}
        text = render(EVERY, results, specs="methods.json", command="python")
        (row,) = [line for line in text.splitlines() if line.startswith("| hinton, 62 % fewer")]
        assert "| 91.0 ± 1.0 |" in row
        assert "| 61.7 % |" in row
        assert row.count("**+2.0 [+1.0, +3.0]**, p 0.031") == 3

    def test_a_gain_that_may_be_nothing_is_not_bold(self):
        cell = named("sst2/hinton/62 % fewer/seed-0")
        text = render([cell], {cell.name: result(cell, gain=-0.005)}, specs="s", command="c")
        assert "| −0.5 [−1.5, +0.5], p 0.031 |" in text

    def test_what_else_was_compared_stands_below(self):
        cell = named("chain/6 → 4 → 2 layers/seed-0")
        text = render([cell], {cell.name: result(cell, direct=0.88)}, specs="s", command="c")
        assert "- 6 → 4 → 2 layers: direct 88.0; distilled − direct by seed: **+2.0 [+1.0, +3.0]**" in text

    def test_failures_are_shown(self):
        cell = named("xquad/hinton/62 % fewer/seed-1")
        text = render(
            EVERY, {cell.name: result(cell, error="diverged: the loss\nis not finite")}, specs="s", command="c"
        )
        assert "| hinton, 62 % fewer | failed |" in text
        assert "- `xquad/hinton/62 % fewer/seed-1`: diverged: the loss is not finite" in text

    def test_the_specs_are_the_exact_ones(self):
        cell = named("teacher/stsb/seed-0")
        assert json.loads(specs_of(EVERY, {cell.name: result(cell)}))[cell.name]["spec"] == cell.spec

    def test_the_best_preset_is_the_one_with_the_best_validation_scores_on_all_of_its_cells(self):
        results = {}
        for cell in EVERY:
            if cell.name.startswith("sst2/"):
                better = cell.name.startswith(("sst2/minilm", "sst2/tinybert"))
                results[cell.name] = result(cell, score=0.92 if better else 0.9)
        missing = named("sst2/tinybert/75 % fewer/seed-2")
        results[missing.name] = result(missing, error="lost")
        assert best_preset(results) == "minilm"
        assert best_preset({}) == "hinton"


class TestGoingOn:
    def test_what_is_done_is_not_run_again(self, tmp_path):
        cell = named("self/three generations/seed-0")
        result(cell).write(tmp_path / "results", cell)
        before = (tmp_path / "results" / f"{cell.file}.json").stat().st_mtime_ns
        run_all([cell], tmp_path, tmp_path, 1, "cpu")
        assert not (tmp_path / "logs").exists()
        assert (tmp_path / "results" / f"{cell.file}.json").stat().st_mtime_ns == before
        assert collect([cell], tmp_path) == {cell.name: result(cell)}

    def test_what_failed_or_has_another_spec_is_run_again(self, tmp_path):
        failed, changed, new = (named(f"self/three generations/seed-{seed}") for seed in range(3))
        result(failed, error="lost").write(tmp_path, failed)
        result(small(changed, 5)).write(tmp_path, changed)
        assert outstanding([failed, changed, new], tmp_path) == [failed, changed, new]

    def test_teachers_come_along_with_the_cells_that_need_them(self):
        names = [cell.name for cell in chosen(EVERY, "^ensemble/three.*seed-1$")]
        assert names == [*(f"teacher/sst2/seed-{seed}" for seed in range(3)), "ensemble/three teachers/seed-1"]

    def test_a_job_that_cannot_go_on_has_its_error_as_its_result(self, tmp_path):
        cell = named("sst2/hinton/62 % fewer/seed-0")
        found = run_cell(cell, {}, tmp_path, "cpu")
        assert found.report is None
        assert found.error is not None
        assert "sst2-train" in found.error

    def test_a_cell_survives_its_way_into_another_process(self):
        cell = named("chain/6 → 4 → 2 layers/seed-0")
        assert Cell.from_json(json.loads(json.dumps(cell.as_json()))) == cell

    def test_the_best_validation_score_is_the_last_phases(self):
        notes = Notes()
        for phase, value in [(0, 0.99), (1, 0.7), (1, 0.8), (1, 0.75)]:
            notes.metric("distilled", 0, phase, "validation_accuracy", 1, value)
        notes.metric("control", 0, 1, "validation_accuracy", 1, 0.95)
        assert notes.best_validation("accuracy") == 0.8


class TestRows:
    @pytest.fixture
    def datasets(self, tmp_path: Path) -> dict[str, Path]:
        source = tmp_path / "data"
        for folder in ("sst2", "xquad"):
            (source / folder).mkdir(parents=True)
        for part, count in (("train", 2100), ("validation", 600), ("test", 5)):
            lines = [f'a "quoted {part} {row}\t{row % 2}' for row in range(count)]
            (source / "sst2" / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", "utf-8")
        for part in ("train", "test"):
            lines = [
                json.dumps(
                    {
                        "id": row,
                        "question": f"{row}?",
                        "context": f"c{row // 4}",
                        "answers": {"text": ["c"], "answer_start": [0]},
                    }
                )
                for row in range(40)
            ]
            (source / "xquad" / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        return prepare(source, tmp_path / "work")

    def test_few_rows_keep_their_labels(self, datasets):
        labels = pq.read_table(datasets["sst2-few-and-many"]).column("label").to_pylist()
        assert len(labels) == 2100
        assert sum(label is not None for label in labels) == 2000 == pq.read_metadata(datasets["sst2-few"]).num_rows
        assert pq.read_metadata(datasets["sst2-few-validation"]).num_rows == 500

    def test_quotes_are_letters(self, datasets):
        assert pq.read_table(datasets["sst2-test"]).column("sentence")[0].as_py() == 'a "quoted test 0'

    def test_questions_on_one_context_stand_on_one_side(self, datasets):
        train, validation = (
            set(pq.read_table(datasets[f"xquad-{part}"]).column("context").to_pylist())
            for part in ("train", "validation")
        )
        assert validation
        assert not train & validation

    def test_columns_are_those_that_the_tasks_name(self, datasets):
        names = set(pq.read_schema(datasets["xquad-train"]).names)
        assert {TASKS["xquad"][column] for column in ("question", "context", "answers")} == names


class TestDocumentedMethods:
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text("utf-8")
    snippets = tuple(json.loads(found) for found in re.findall(r"```json\n(.*?)```", text, re.DOTALL))

    @pytest.mark.parametrize("snippet", snippets, ids="-".join)
    def test_each_snippet_can_be_sent_as_a_part_of_the_first(self, snippet):
        whole = {**self.snippets[0], **snippet}
        if "stages" in snippet:
            del whole["student"]
        assert resolve(parse_job(whole)).stages

    @pytest.mark.parametrize("preset", PRESETS)
    def test_each_preset_has_a_heading(self, preset):
        assert f"### `{preset}`\n" in self.text

    @pytest.mark.parametrize("kind", [get_args(kind.model_fields["kind"].annotation)[0] for kind in OBJECTIVES])
    def test_each_objective_has_a_row(self, kind):
        assert f"| `{kind}` |" in self.text
