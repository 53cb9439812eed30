"""What must hold before a student may serve."""

from pydantic import Field

from models.specs.base import Spec


class GateSpec(Spec):
    """Limits on what the test rows prove of a student, as a bound at a confidence, and on what it costs."""

    max_drop: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Upper end of the one-sided paired interval of (teacher − student) in the task's main metric, at most this."""
    min_agreement: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Clopper-Pearson lower bound of the agreement with the teacher, at least this."""
    min_metric: float | None = Field(None, ge=-1, le=1, allow_inf_nan=False)
    """One-sided lower bound of the task's main metric, at least this."""
    max_latency_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    """p95 of one input on one thread, tokenisation included, as measured on the worker's host: at most this."""
    max_bytes: int | None = Field(None, ge=1)
    """Size of the graph that is served, at most this."""
    confidence: float = Field(0.95, gt=0.5, lt=1, allow_inf_nan=False)
