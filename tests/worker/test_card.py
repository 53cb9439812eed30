"""The model card: what it shows of a report, and that its examples run in the student's folder."""

import contextlib
import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
)

from models.specs import ResolvedSpec, parse_job, resolve
from tests.factories import LABELS, tiny_config, tiny_tokenizer
from worker import card, export
from worker.provenance import Provenance, section

COLUMNS: dict[str, dict[str, Any]] = {
    "text-classification": {"text": "text", "label": "label"},
    "text-regression": {"text": "text", "text_pair": "other", "target": "target"},
    "token-classification": {"tokens": "tokens", "tags": "tags"},
    "question-answering": {"question": "question", "context": "context", "answers": "answers", "stride": 8},
}
SCORES: dict[str, dict[str, float]] = {
    "text-classification": {"accuracy": 0.875, "macro_f1": 0.8},
    "text-regression": {"pearson": 0.875, "spearman": 0.8, "mse": 0.4},
    "token-classification": {"f1": 0.875, "accuracy": 0.9},
    "question-answering": {"f1": 0.875, "exact_match": 0.7},
}
KINDS = list(COLUMNS)


def spec(kind: str = "text-classification", **more: Any) -> ResolvedSpec:
    task = {"kind": kind, "max_length": 24, **COLUMNS[kind]}
    return resolve(
        parse_job(
            {
                "name": "a <small> | student",
                "task": task,
                "dataset": {"id": "ds_1"},
                "teachers": [{"kind": "local", "model": "hub:org/teacher@main"}],
                "student": {"kind": "from_teacher", "layers": 1},
                "promote": {"deployment": "reviews", "gate": {"max_drop": 0.04}},
                **more,
            }
        )
    )


def report(kind: str = "text-classification", **more: Any) -> dict[str, Any]:
    labelled = kind in {"text-classification", "token-classification"}
    row = {
        "label": LABELS[0],
        "precision": 0.5,
        "recall": 0.25,
        "f1": 1 / 3,
        "support": 1234,
        "recall_interval": [0.226, 0.2751] if kind == "text-classification" else None,
    }
    arm = {
        **SCORES[kind],
        "accuracy_interval": [0.86, 0.89] if kind == "text-classification" else None,
        "agreement": None if kind == "text-regression" else 0.95,
        "per_class": [row] if labelled else [],
        "parameters": 2_000,
        "bytes": 1_500_000,
        "served": "fp32",
        "precisions": {"fp32": {"p50_ms": 0.5}},
    }
    recorded = {**arm, "agreement": None, "parameters": None, "bytes": None, "precisions": {"fp32": {"p50_ms": None}}}
    return {
        "metric": next(iter(SCORES[kind])),
        "verdict": "The distilled student is good.",
        "rows": {"train": 8000, "validation": 1000, "test": 2000},
        "labels": list(LABELS) if labelled else [],
        "arms": {"teacher": recorded, "distilled": arm, "control": arm, "untrained": arm},
        "others": {"stage 1": arm},
        "constant": SCORES[kind],
        "precision": {"served": "fp32", "reason": "The job asks for fp32."},
        "gate": {"passed": True, "checks": [{"reason": "At 95 % confidence it holds."}]},
        "host": {"cpu": "a processor", "cores": 2, "device": "cpu"},
        "slices": [],
        "warnings": [],
        **more,
    }


def table(text: str) -> list[list[str]]:
    """The cells of the first table."""
    lines = text.split("## Results")[1].split("## Use", maxsplit=1)[0].split("\n\n")
    found = next(part for part in lines if part.startswith("| |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


class TestCard:
    def test_it_has_the_table_and_the_verdict(self) -> None:
        text = card.card(report(), spec())
        head, rule, teacher, distilled, *others = table(text)
        assert head == [
            "", "accuracy", "95 % interval", "macro-F1", "agrees with teacher", "parameters", "file", "p50",
        ]  # fmt: skip
        assert len(rule) == len(head)
        assert teacher == ["teacher", "87.5 %", "86.0 – 89.0 %", "0.800", "", "", "", ""]
        assert distilled == [
            "distilled", "87.5 %", "86.0 – 89.0 %", "0.800", "95.0 %", "2,000", "1.5 MB", "0.50 ms",
        ]  # fmt: skip
        assert [row[0] for row in others] == ["control", "untrained", "stage 1", "constant answer"]
        assert others[-1] == ["constant answer", "87.5 %", "", "0.800", "", "", "", ""]
        for words in ("The distilled student is good.", "2,000", "At 95 % confidence it holds.", "1,234"):
            assert words in text
        assert "# a &lt;small> \\| student" in text

    @pytest.mark.parametrize(
        ("kind", "columns", "values"),
        [
            ("text-regression", ["Pearson", "Spearman", "mean squared error"], ["0.875", "0.800", "0.400"]),
            ("token-classification", ["F1", "accuracy"], ["0.875", "90.0 %"]),
            ("question-answering", ["F1", "exact match"], ["0.875", "70.0 %"]),
        ],
    )
    def test_the_columns_are_the_tasks_metrics(self, kind: str, columns: list[str], values: list[str]) -> None:
        text = card.card(report(kind), spec(kind))
        head, _, _, distilled, *_ = table(text)
        assert head == ["", *columns, "agrees with teacher", "parameters", "file", "p50"]
        assert distilled[1 : 1 + len(values)] == values
        assert ("Label by label" in text) is (kind == "token-classification")
        assert ("Labels:" in text) is (kind == "token-classification")

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_hub_can_read_its_front_matter(self, kind: str) -> None:
        yaml = pytest.importorskip("yaml")
        front = yaml.safe_load(card.card(report(kind), spec(kind)).split("---\n")[1])
        assert front["library_name"] == "transformers"
        assert front["pipeline_tag"] == ("text-classification" if kind == "text-regression" else kind)
        assert front["base_model"] == "org/teacher"
        (entry,) = front["model-index"]
        assert entry["name"] == "a <small> | student"
        assert entry["results"][0]["metrics"][0]["value"] == 0.875

    def test_a_control_and_a_gate_may_be_absent(self) -> None:
        arms = {**report()["arms"], "control": None}
        text = card.card(report(arms=arms, gate={"passed": None, "checks": []}, others={}, constant=None), spec())
        assert [row[0] for row in table(text)[2:]] == ["teacher", "distilled", "untrained"]
        assert "gate" not in text.split("## How it was made")[0]

    def test_labels_have_the_interval_of_their_recall(self) -> None:
        assert "| negative | 0.500 | 0.250 | 0.226 – 0.275 | 0.333 | 1,234 |" in card.card(report(), spec())
        words = card.card(report("token-classification"), spec("token-classification"))
        assert "| negative | 0.500 | 0.250 |  | 0.333 | 1,234 |" in words

    def test_what_the_job_warned_of_stands_there(self) -> None:
        warning = {"code": "leaking_rows_dropped", "message": "5 rows stand on | both sides"}
        text = card.card(report(warnings=[warning]), spec())
        assert "What the job warned of:\n\n- 5 rows stand on \\| both sides\n" in text
        assert "warned" not in card.card(report(), spec())

    def test_the_slices_where_most_is_lost(self) -> None:
        def part(value: str, drop: float | None) -> dict[str, Any]:
            interval = (
                None if drop is None else {"value": drop, "low": drop - 0.05, "high": drop + 0.05, "confidence": 0.9}
            )
            return {
                "name": "source",
                "value": value,
                "rows": 1500,
                "arms": {"teacher": 0.9, "distilled": 0.875},
                "drop": interval,
            }

        parts = [part(str(place), 0.01 * place) for place in range(-1, 7)] + [part("few", None)]
        text = card.card(report(slices=parts), spec())
        assert "5 of 9 parts of the test rows; 1 of them have too few rows for an interval." in text
        lines = text.split("| part |")[1].split("\n\n")[0].splitlines()
        assert lines[0].split(" | ")[-2:] == ["drop, points", "90 % interval |"]
        assert [line.split(" | ")[0] for line in lines[2:]] == [f"| source: {place}" for place in (6, 5, 4, 3, 2)]
        assert lines[2] == "| source: 6 | 1,500 | 90.0 % | 87.5 % | 6.0 | 1.0 to 11.0 |"
        assert lines[-1].endswith("| 2.0 | −3.0 to 7.0 |")
        assert "| part |" not in card.card(report(slices=[part("a", 0.0), part("b", -0.1), part("c", None)]), spec())

    def test_it_is_written_into_the_folder(self, tmp_path: Path) -> None:
        made = Provenance([], [], {}, {"seed": 0}, {}, {"cpu": "a", "cores": 2, "threads": 1, "gpu": None}, "0" * 64)
        card.write_card(tmp_path, report(), spec(), made)
        text = (tmp_path / "README.md").read_text("utf-8")
        assert text.startswith(card.card(report(), spec()))
        assert text.endswith(section(made))


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def network(kind: str) -> Any:
    heads: dict[str, tuple[Any, tuple[str, ...] | None]] = {
        "text-classification": (BertForSequenceClassification, LABELS),
        "text-regression": (BertForSequenceClassification, ("target",)),
        "token-classification": (BertForTokenClassification, ("B-person", "O")),
        "question-answering": (BertForQuestionAnswering, None),
    }
    head, labels = heads[kind]
    config: BertConfig = tiny_config(labels)
    torch.manual_seed(0)
    return head(config).eval()


class TestUsage:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_said_of_transformers_runs(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network(kind).save_pretrained(tmp_path)
        BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=24).save_pretrained(tmp_path)
        monkeypatch.chdir(tmp_path)
        example = code(card.card(report(kind), spec(kind)), "python")[0]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - the card is ours
        shown = out.getvalue().strip()
        if kind == "question-answering":
            assert shown
            assert shown in "It was written by Ada."
        elif kind == "text-classification":
            assert all(label in shown for label in LABELS)
        elif kind == "text-regression":
            assert "'score':" in shown
        else:
            assert shown.startswith("[")

    def test_what_is_said_of_onnxruntime_gives_the_same_label(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = network("text-classification")
        tokenizer = BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=24)
        tokenizer.save_pretrained(tmp_path)
        made.save_pretrained(tmp_path)
        export.to_onnx(made, tmp_path, max_length=24)
        monkeypatch.chdir(tmp_path)
        _, example = code(card.card(report(), spec()), "python")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - the card is ours
        with torch.inference_mode():
            best = int(made(**tokenizer("a text", return_tensors="pt")).logits.argmax())
        assert out.getvalue().strip() == LABELS[best]

    def test_onnxruntime_alone_is_for_one_label_of_a_text(self) -> None:
        for kind in KINDS[1:]:
            assert len(code(card.card(report(kind), spec(kind)), "python")) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_call_of_predict_is_a_command(self, kind: str) -> None:
        (command,) = code(card.card(report(kind), spec(kind)), "sh")
        assert "/predict/reviews" in command
        subprocess.run(["sh", "-n"], input=command, text=True, check=True)
