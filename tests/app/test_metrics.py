"""What operators see: `/metrics`, and the dashboard that reads it."""

import json
import re
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from models.tables import Worker, new_id, utc_now
from tests.app.conftest import Api

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "limbeck.json").read_text())
# What Prometheus adds when it scrapes.
SCRAPED = {"job", "instance"}


def samples(api: Api) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(api.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(api: Api, name: str, **labels: str) -> float:
    [found] = [number for having, number in samples(api)[name] if having == labels]
    return found


class TestMetrics:
    def test_answers_by_deployment_and_arm(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        for inputs in ("a good day", ["a good day", "rain"]):
            api.client.post("/predict", json={"inputs": inputs})
        assert value(api, "limbeck_predict_inputs_total", deployment="default", arm="stable") == 3
        assert value(api, "limbeck_predict_requests_total", deployment="default", outcome="ok") == 2
        assert value(api, "limbeck_deployments") == 1

    def test_the_oldest_job_that_waits(self, api: Api) -> None:
        assert value(api, "limbeck_jobs_oldest_queued_seconds") == 0
        api.job(status="succeeded", created_at=utc_now().replace(year=2020))
        before = time.time()
        api.job(status="queued")
        time.sleep(0.05)
        assert 0.05 <= value(api, "limbeck_jobs_oldest_queued_seconds") <= time.time() - before + 0.01

    def test_workers_that_were_heard_of_lately(self, api: Api) -> None:
        now = time.time()
        with api.database.writing() as session:
            for host, device, seen in (("a", "gpu", now), ("b", "gpu", now), ("c", "cpu", now - 1000)):
                row = Worker(id=new_id("wk"), host=host, pid=1, device=device, slots=2, jobs=[], seen_at=seen)
                session.add(row)
        assert value(api, "limbeck_workers", device="gpu") == 2
        assert value(api, "limbeck_worker_slots", device="gpu") == 4
        assert value(api, "limbeck_workers", device="cpu") == 0


class TestDashboard:
    def test_every_metric_and_label_that_it_names_is_exported(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        api.client.post("/predict", json={"inputs": "a good day"})
        exported = samples(api)
        asked = 0
        for expression in _expressions():
            assert "limbeck_" in expression
            for name, matchers in re.findall(r"(limbeck_\w+)(?:\{([^}]*)\})?", expression):
                assert name in exported, f"{name} is not exported"
                labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
                assert labels <= set(exported[name][0][0]) | SCRAPED, f"{name} has no such labels"
                asked += 1
            for by in re.findall(r"by \(([^)]*)\)", expression):
                used = {label.strip() for label in by.split(",")}
                known = {label for name in re.findall(r"limbeck_\w+", expression) for label in exported[name][0][0]}
                assert used <= known | SCRAPED
        assert asked >= len([panel for panel in DASHBOARD["panels"] if panel["type"] != "row"])

    def test_is_one(self) -> None:
        panels = DASHBOARD["panels"]
        assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert {panel["type"] for panel in panels} == {"row", "stat", "timeseries"}
        for panel in panels:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            if panel["type"] != "row":
                assert panel["description"]
                assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
                references = [target["refId"] for target in panel["targets"]]
                assert len(set(references)) == len(references) > 0
        assert not [pair for pair in combinations(panels, 2) if _overlap(*(one["gridPos"] for one in pair))]

    def test_brackets_close(self) -> None:
        for expression in _expressions():
            assert all(expression.count(one) == expression.count(other) for one, other in ("()", "{}", "[]"))

    def test_variables_that_are_used_are_there(self) -> None:
        known = {one["name"] for one in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__all"}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
        assert used <= known

    def test_scrape_example(self) -> None:
        [scrape] = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["scrape_configs"]
        assert (scrape["metrics_path"], scrape["authorization"]["type"]) == ("/metrics", "Bearer")


def _expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return not (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
