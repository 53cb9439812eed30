"""The manifests in deploy/kubernetes: the autoscaler's queries count what they say, and every variable is a setting."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from app.main import Serve
from models.database import Database
from models.settings import Settings
from models.tables import JOB_STATUSES, Job, new_id

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
TREATED = {"queued", "running", "pausing", "cancelling"}
"""What needs a worker."""


def _manifests() -> list[dict[str, Any]]:
    return [manifest for path in FILES for manifest in yaml.safe_load_all(path.read_text("utf-8"))]


def test_every_file_is_applied() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]


def test_every_variable_is_a_setting() -> None:
    known = {f"LIMBECK_{name.upper()}" for kind in (Settings, Serve) for name in kind.model_fields}
    named = {name for path in FILES for name in re.findall(r"\bLIMBECK_[A-Z_]+", path.read_text("utf-8"))}
    assert named
    assert named <= known


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_worker_for_every_job_that_waits_or_runs(device: str, database: Database) -> None:
    scaled = next(
        one for one in _manifests() if one["metadata"]["name"] == f"worker-{device}" and "triggers" in one["spec"]
    )
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    with database.writing() as session:
        for status in JOB_STATUSES:
            for other in ("cpu", "gpu"):
                session.add(
                    Job(id=new_id("job"), owner="default", spec={}, resolved_spec={}, status=status, device=other)
                )
    with database.reading() as session:
        assert session.scalar(text(query)) == len(TREATED)


def test_workers_and_their_autoscaler_are_told_of_the_same_device() -> None:
    deployments = {one["metadata"]["name"]: one for one in _manifests() if one["kind"] == "Deployment"}
    for one in _manifests():
        if one["kind"] == "ScaledObject":
            target = deployments[one["spec"]["scaleTargetRef"]["name"]]
            variables = {
                each["name"]: each["value"] for each in target["spec"]["template"]["spec"]["containers"][0]["env"]
            }
            assert f"device = '{variables['LIMBECK_DEVICE']}'" in one["spec"]["triggers"][0]["metadata"]["query"]
