"""Metric series, thinned out in the database: of a long one only the points that are shown are ever read.

A point is found by its place in the primary key, so that 500 points of 10,000 cost 500 look-ups and no scan of the
rows. SQLite and PostgreSQL.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Integer, Row, Select, bindparam, cast, func, literal, select
from sqlalchemy.orm import Session

from models.tables import Metric

_KEY = (Metric.job_id, Metric.name, Metric.arm, Metric.stage, Metric.phase)


def read(session: Session, jobs: Sequence[str], name: str | None, points: int) -> Iterator[Row[Any]]:
    """The points of these jobs' series, of all names or of one, in the order of job, name, arm, stage, phase and step.

    Of a series with more than `points` (2 or more) at most so many, evenly spaced by step, the first and the last
    among them.
    """
    statement = select(*_KEY, func.count(), func.min(Metric.step), func.max(Metric.step))
    statement = statement.where(Metric.job_id.in_(jobs)).group_by(*_KEY).order_by(*_KEY)
    if name is not None:
        statement = statement.where(Metric.name == name)
    for row in session.execute(statement).all():
        series = _Series(*row)
        wanted = _WHOLE if series.size <= points else _THINNED
        yield from session.execute(wanted, {**series._asdict(), "gaps": points - 1})


class _Series(NamedTuple):
    job_id: str
    name: str
    arm: str
    stage: int
    phase: int
    size: int
    first: int
    """A step, as the last one."""
    last: int


_OF_SERIES = [column == bindparam(column.key, type_=column.type) for column in _KEY]


def _whole() -> Select[*tuple[Any, ...]]:
    return select(*_KEY, Metric.step, Metric.value).where(*_OF_SERIES).order_by(Metric.step)


def _thinned() -> Select[*tuple[Any, ...]]:
    """For each of `gaps` + 1 equal distances the first step that has gone so far."""
    first, last, gaps = (bindparam(name, type_=BigInteger) for name in ("first", "last", "gaps"))
    picked = select(literal(0, BigInteger).label("at"), cast(first, Integer).label("step")).cte(
        "picked", recursive=True
    )
    goal = first + (picked.c.at + 1) * (last - first) // gaps
    following = select(func.min(Metric.step)).where(*_OF_SERIES, Metric.step >= goal).scalar_subquery()
    further = select(picked.c.at + 1, following).where(picked.c.at < gaps)
    return _whole().where(Metric.step.in_(select(picked.union_all(further).c.step)))


_WHOLE, _THINNED = _whole(), _thinned()
