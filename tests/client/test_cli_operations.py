"""Whatever the API can do, a person can do at the terminal; what has no command says why."""

from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from limbeck.cli import app
from models.settings import Settings

COMMANDS: dict[str, str] = {
    "POST /datasets": "datasets upload",
    "GET /datasets": "datasets list",
    "GET /datasets/{dataset_id}": "datasets show",
    "GET /datasets/{dataset_id}/rows": "datasets rows",
    "DELETE /datasets/{dataset_id}": "datasets delete",
    "POST /teachers": "teachers upload",
    "GET /teachers": "teachers list",
    "GET /teachers/{teacher_id}": "teachers show",
    "DELETE /teachers/{teacher_id}": "teachers delete",
    "POST /jobs": "jobs submit",
    "POST /jobs/validate": "jobs validate",
    "POST /jobs/{job_id}/rerun": "jobs rerun",
    "POST /jobs/{job_id}/cancel": "jobs cancel",
    "POST /jobs/{job_id}/pause": "jobs pause",
    "POST /jobs/{job_id}/resume": "jobs resume",
    "GET /jobs": "jobs list",
    "GET /jobs/{job_id}": "jobs show",
    "GET /jobs/{job_id}/events": "jobs events",
    "GET /jobs/{job_id}/metrics": "jobs metrics",
    "GET /metrics/jobs": "compare",
    "GET /jobs/{job_id}/bundle": "jobs bundle",
    "DELETE /jobs/{job_id}": "jobs delete",
    "GET /students": "students list",
    "GET /students/{student_id}": "students show",
    "GET /students/{student_id}/report": "students report",
    "GET /students/{student_id}/disagreements": "students disagreements",
    "GET /students/{student_id}/economics": "economics",
    "GET /students/{student_id}/files": "students download",
    "GET /students/{student_id}/files/{path}": "students download",
    "POST /students/{student_id}/verify": "students verify",
    "POST /students/{student_id}/predict": "students try",
    "DELETE /students/{student_id}": "students delete",
    "PUT /deployments/{name}": "deployments put",
    "GET /deployments": "deployments list",
    "GET /deployments/{name}": "deployments show",
    "GET /deployments/{name}/history": "deployments history",
    "GET /deployments/{name}/traffic": "deployments traffic",
    "POST /deployments/{name}/rollback": "deployments rollback",
    "GET /deployments/{name}/captures": "deployments captures",
    "DELETE /deployments/{name}/captures": "deployments delete-captures",
    "POST /deployments/{name}/captures/dataset": "deployments dataset",
    "DELETE /deployments/{name}": "deployments delete",
    "POST /predict/{deployment}": "predict",
    "POST /predictions/{prediction_id}/feedback": "feedback",
    "GET /secrets": "secrets list",
    "GET /secrets/{name}": "secrets show",
    "PUT /secrets/{name}": "secrets set",
    "DELETE /secrets/{name}": "secrets delete",
    "POST /webhooks": "webhooks add",
    "GET /webhooks": "webhooks list",
    "DELETE /webhooks/{webhook_id}": "webhooks delete",
    "GET /webhooks/{webhook_id}/deliveries": "webhooks deliveries",
    "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/replay": "webhooks replay",
    "POST /webhooks/{webhook_id}/test": "webhooks test",
    "POST /keys": "keys create",
    "GET /keys": "keys list",
    "DELETE /keys/{key_id}": "keys delete",
    "GET /workers": "workers",
    "GET /readyz": "status",
    "POST /ui/links": "open",
}

DIALECTS = ("/v1/", "/v2/", "/v2 ")
"""What other systems' clients speak, each with a command line of its own."""

HOLES: dict[str, str] = {
    "POST /predict": "the same as POST /predict/default",
    "GET /healthz": "for load balancers; `limbeck status` asks /readyz, which says more",
    "GET /metrics": "for Prometheus",
}


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every operation of the real application, as its OpenAPI document has it."""
    folder = tmp_path_factory.mktemp("openapi")
    document: dict[str, Any] = create_app(
        Settings(data_dir=Path(folder), database_url="", broker_url="", artifacts_url="")
    ).openapi()
    return {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if not f"{path} ".startswith(DIALECTS)
    }


def test_every_operation_has_a_command_or_a_reason(operations: set[str]) -> None:
    assert operations - COMMANDS.keys() - HOLES.keys() == set()


def test_every_line_of_the_tables_is_an_operation(operations: set[str]) -> None:
    assert (COMMANDS.keys() | HOLES.keys()) - operations == set()


def test_every_command_of_the_table_is_there() -> None:
    there = {str(command.name) for command in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        there |= {f"{group.name} {command.name}" for command in group.typer_instance.registered_commands}
    assert set(COMMANDS.values()) <= there
