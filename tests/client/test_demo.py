"""The demo's own parts, and the whole of it with few rows."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.cli.demo import DEPLOYMENT, Size, job_spec, write_table
from models.specs import parse_job


def test_the_job_is_one_that_the_service_accepts() -> None:
    for size in (Size(), Size(rows=300, test=300, epochs=1, teacher_epochs=1)):
        spec = parse_job(job_spec("ds_00000000", size))
        assert spec.promote is not None
        assert spec.promote.deployment == DEPLOYMENT


def test_the_corpus_becomes_a_clean_table(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.csv"
    corpus.write_bytes(b'sentiment,confidence,text\nnegative,0.7,caf\xd1 "x"\npositive,0.9,"a, b"\n')
    assert write_table(corpus, tmp_path / "out.csv") == 2
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"text": 'caf� "x"', "sentiment": "negative"},
        {"text": "a, b", "sentiment": "positive"},
    ]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.valkey
def test_from_an_upload_to_predictions(tmp_path: Path) -> None:
    arguments = ["--rows", "300", "--test-rows", "300", "--epochs", "1", "--teacher-epochs", "1", "--again", "--json"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "limbeck", "demo", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    first, second = answer["runs"]
    assert first["job"]["status"] == second["job"]["status"] == "succeeded"
    assert set(first["report"]["arms"]) == {"teacher", "distilled", "control", "untrained"}
    assert len(answer["predictions"]) == 3
    assert second["report"]["counters"]["teacher_training_steps"] == 0
