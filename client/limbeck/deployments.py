"""Deployments: the names that production calls, and where they point."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Generic

from limbeck.objects import (
    Dataset,
    Deployment,
    DeploymentChange,
    DeploymentTraffic,
    Page,
    Prediction,
    Student,
    read,
)
from limbeck.paging import every, page
from limbeck.transport import Transport, body
from limbeck.verbs import verb, walk
from limbeck.wires import W_co


class Deployments(Generic[W_co]):
    """`if_match` is the version that you believe to be current; where it is not, the code is `version_mismatch`."""

    def __init__(self, transport: Transport[W_co]) -> None:
        self._transport = transport

    @verb
    async def put(
        self,
        name: str,
        student: str | Student,
        *,
        canary: Mapping[str, Any] | None = None,
        shadow: Mapping[str, Any] | None = None,
        fallback: Mapping[str, Any] | None = None,
        auto: Mapping[str, Any] | None = None,
        capture: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
        override: str | None = None,
        if_match: int | None = None,
    ) -> Deployment:
        """Point `name` at a student, which must load, give its answers on record, and hold the gate.

        What is not given is not there afterwards: a canary that was there ends. Only a gate stays. `canary`:
        `{"student", "fraction"}`. `shadow`: `{"student"}`. `fallback`: `{"to", "threshold"}`, or a target in place of
        the threshold. `auto`: `{}` lets a canary or shadow decide for itself. `override`: why a student serves whose
        gate does not hold.
        """
        parts = {
            "student": student if isinstance(student, str) else student.id,
            "canary": canary,
            "shadow": shadow,
            "fallback": fallback,
            "auto": auto,
            "capture": capture,
            "gate": gate,
            "override": override,
        }
        document = {part: value for part, value in parts.items() if value is not None}
        return await Deployments.apply(self, name, document, if_match=if_match)

    @verb
    async def apply(self, name: str, document: Mapping[str, Any], *, if_match: int | None = None) -> Deployment:
        """The same, of the whole document that says what the deployment should be."""
        # With a version a second try could not tell its own success from somebody else's.
        response = await self._transport.request(
            "PUT", f"/deployments/{name}", json=document, headers=_if_match(if_match), idempotent=if_match is None
        )
        return read(Deployment, body(response))

    @verb
    async def get(self, name: str) -> Deployment:
        return read(Deployment, body(await self._transport.request("GET", f"/deployments/{name}")))

    @verb
    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Deployment]:
        """Newest first."""
        return await page(self._transport, "/deployments", Deployment, after=after, limit=limit)

    @walk
    def all(self) -> AsyncGenerator[Deployment]:
        """Every deployment, newest first, page by page."""
        return every(self._transport, "/deployments", Deployment)

    @verb
    async def history(self, name: str) -> Sequence[DeploymentChange]:
        """Every move, newest first."""
        return (await page(self._transport, f"/deployments/{name}/history", DeploymentChange)).data

    @verb
    async def rollback(self, name: str, *, if_match: int | None = None) -> Deployment:
        """Point back at the student before. Two in a row go two back."""
        response = await self._transport.request("POST", f"/deployments/{name}/rollback", headers=_if_match(if_match))
        return read(Deployment, body(response))

    @verb
    async def traffic(self, name: str, *, version: int | None = None) -> DeploymentTraffic:
        """What each arm has seen since the last change (or as of an earlier `version`), and what `auto` would do."""
        given = {} if version is None else {"version": version}
        return read(
            DeploymentTraffic, body(await self._transport.request("GET", f"/deployments/{name}/traffic", params=given))
        )

    @verb
    async def captures(
        self, name: str, *, labelled: bool | None = None, after: str | None = None, limit: int = 20
    ) -> Page[Prediction]:
        """The inputs and answers that were kept, newest first. `labelled`: only those with a true answer, or without.

        See also `client.predictions.feedback`.
        """
        return await page(
            self._transport,
            f"/deployments/{name}/captures",
            Prediction,
            labelled=labelled,
            after=after,
            limit=limit,
        )

    @verb
    async def delete_captures(self, name: str) -> None:
        """Forget everything that was captured."""
        await self._transport.request("DELETE", f"/deployments/{name}/captures")

    @verb
    async def dataset_of_captures(
        self,
        deployment: str,
        *,
        name: str | None = None,
        labels: str | None = None,
        only_unsure_below: float | None = None,
    ) -> Dataset:
        """A dataset of what was captured, with the columns of the student's task: the same job can learn from it.

        `labels`: feedback (default; rows without it have no label), answers, or both, the feedback where there is some.
        `only_unsure_below`: only rows whose answer has a score below this.
        """
        parts = {"name": name, "labels": labels, "only_unsure_below": only_unsure_below}
        document = {part: value for part, value in parts.items() if value is not None}
        response = await self._transport.request("POST", f"/deployments/{deployment}/captures/dataset", json=document)
        return read(Dataset, body(response))

    @verb
    async def delete(self, name: str, *, if_match: int | None = None) -> None:
        await self._transport.request(
            "DELETE", f"/deployments/{name}", headers=_if_match(if_match), idempotent=if_match is None
        )


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}
