"""Long series are thinned out in the database, on SQLite and on PostgreSQL."""

from itertools import pairwise

import pytest

from app.routes import series
from models.database import Database
from models.settings import Settings
from models.tables import Job, Metric, new_id


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.data_dir.mkdir()
    return settings


@pytest.fixture
def job(database: Database) -> str:
    """With a loss at the first step and every tenth of two stages, a rate of three points, and another job's loss."""
    ids = [new_id("job"), new_id("job")]
    with database.writing() as session:
        for id_ in ids:
            session.add(Job(id=id_, owner="default", spec={}, resolved_spec={}))
        session.flush()
        points = [
            *((ids[0], "loss", stage, step) for stage in (0, 1) for step in (1, *range(10, 3001, 10))),
            *((ids[0], "rate", 0, step) for step in (1, 7, 3_000_000)),
            (ids[1], "loss", 0, 5),
        ]
        for job_id, name, stage, step in points:
            session.add(
                Metric(
                    job_id=job_id,
                    name=name,
                    arm="distilled",
                    stage=stage,
                    phase=0,
                    step=step,
                    value=step / 2,
                    attempt=1,
                )
            )
    return ids[0]


def test_whole_where_it_is_short(database: Database, job: str) -> None:
    with database.reading() as session:
        rows = list(series.read(session, [job], "rate", 3))
    assert [(row.step, row.value) for row in rows] == [(1, 0.5), (7, 3.5), (3_000_000, 1_500_000.0)]


@pytest.mark.parametrize("points", [2, 3, 50, 301])
def test_thinned_evenly_by_step(database: Database, job: str, points: int) -> None:
    with database.reading() as session:
        rows = list(series.read(session, [job], "loss", points))
    for stage in (0, 1):
        steps = [row.step for row in rows if row.stage == stage]
        assert len(steps) == points
        assert (steps[0], steps[-1]) == (1, 3000)
        gaps = [two - one for one, two in pairwise(steps)]
        assert min(gaps) > 0
        assert max(gaps) <= 2999 / (points - 1) + 10


def test_large_steps_and_all_names(database: Database, job: str) -> None:
    with database.reading() as session:
        rows = list(series.read(session, [job], None, 2))
    found = [(row.name, row.stage, row.step) for row in rows]
    assert found == [
        ("loss", 0, 1),
        ("loss", 0, 3000),
        ("loss", 1, 1),
        ("loss", 1, 3000),
        ("rate", 0, 1),
        ("rate", 0, 3_000_000),
    ]
