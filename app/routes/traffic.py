"""What a deployment's arms have seen of real calls, and what follows for a candidate."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from app import views
from app.dependencies import ReadSession
from app.routes.deployments import Name
from app.security import Caller, needs
from models import deployments, traffic
from models.figures import CONFIDENCE, Figures, decide
from models.tables import Deployment
from models.traffic import Live

router = APIRouter(tags=["deployments"])


@router.get("/deployments/{name}/traffic", openapi_extra=needs("read"))
def read_traffic(
    name: Name,
    session: ReadSession,
    who: Caller,
    version: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="an earlier version, as the history has it")
    ] = None,
) -> views.DeploymentTraffic:
    """The figures of every arm since the deployment was last changed; they are some seconds old at most.

    Bounds hold at `confidence` for all looks at once: one may look again and again, and stop when one likes.
    """
    row = deployments.find(session, owner=who.owner, name=name)
    live = traffic.live(session, row, version)
    auto = live.traffic.auto
    confidence = CONFIDENCE if auto is None else auto.confidence
    return views.DeploymentTraffic(
        name=row.name,
        version=live.version,
        since=live.since,
        confidence=confidence,
        arms=[_arm(figures, confidence) for figures in live.figures],
        decision=_decision(session, row, live),
    )


def _decision(session: Session, row: Deployment, live: Live) -> views.TrafficDecision | None:
    """What `auto` would do now; of an earlier version what it has done, if it was `auto` that ended it."""
    if live.traffic.auto is None:
        return None
    if live.version == row.version:
        decision = decide(live.traffic.auto, live.figures)
        return views.TrafficDecision(verdict=decision.verdict, reason=decision.reason)
    ended = traffic.ended_by_auto(session, row, live.version)
    return None if ended is None else views.TrafficDecision(verdict=ended.verdict, reason=ended.reason)


def _arm(figures: Figures, confidence: float) -> views.TrafficArm:
    errors, agreement = figures.error_rate(confidence), figures.agreement(confidence)
    return views.TrafficArm(
        arm=figures.arm,
        student=figures.student_id,
        calls=figures.calls,
        inputs=figures.answered,
        errors=figures.errors,
        error_rate=errors.value,
        error_rate_lower_bound=errors.lower if errors.trials else None,
        error_rate_upper_bound=errors.upper if errors.trials else None,
        compared=figures.compared,
        agreed=figures.agreed,
        agreement=agreement.value,
        agreement_lower_bound=agreement.lower if agreement.trials else None,
        agreement_upper_bound=agreement.upper if agreement.trials else None,
        p50_ms=_ms(figures.quantile(0.5)),
        p95_ms=_ms(figures.quantile(0.95)),
        p99_ms=_ms(figures.quantile(0.99)),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
