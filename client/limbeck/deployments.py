"""Deployments: the names that production calls, and where they point."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.objects import Deployment, DeploymentChange, Page, Student, read
from limbeck.paging import page
from limbeck.transport import Transport, body


class Deployments:
    """`if_match` is the version that you believe to be current; where it is not, the code is `version_mismatch`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def put(
        self,
        name: str,
        student: str | Student,
        *,
        gate: Mapping[str, Any] | None = None,
        if_match: int | None = None,
    ) -> Deployment:
        """Point `name` at a student, which must load and give its answers on record first."""
        document: dict[str, Any] = {"student": student if isinstance(student, str) else student.id}
        if gate is not None:
            document["gate"] = gate
        # With a version a second try could not tell its own success from somebody else's.
        response = self._transport.request(
            "PUT", f"/deployments/{name}", json=document, headers=_if_match(if_match), idempotent=if_match is None
        )
        return read(Deployment, body(response))

    def get(self, name: str) -> Deployment:
        return read(Deployment, body(self._transport.request("GET", f"/deployments/{name}")))

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[Deployment]:
        """Newest first."""
        return page(self._transport, "/deployments", Deployment, after=after, limit=limit)

    def history(self, name: str) -> Sequence[DeploymentChange]:
        """Every move, newest first."""
        return page(self._transport, f"/deployments/{name}/history", DeploymentChange).data

    def rollback(self, name: str, *, if_match: int | None = None) -> Deployment:
        """Point back at the student before. Two in a row go two back."""
        response = self._transport.request("POST", f"/deployments/{name}/rollback", headers=_if_match(if_match))
        return read(Deployment, body(response))

    def delete(self, name: str, *, if_match: int | None = None) -> None:
        self._transport.request(
            "DELETE", f"/deployments/{name}", headers=_if_match(if_match), idempotent=if_match is None
        )


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}
