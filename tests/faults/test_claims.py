"""F24: of many workers that reach for the same jobs, each job is taken by exactly one."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from models.database import Database
from models.tables import Event, Job, new_id

PROCESSES = 6
JOBS = 1000
# A worker in small: it looks what waits and claims it, in the same order as all the others, until nothing waits.
CLAIMER = """
import sys
from sqlalchemy.exc import OperationalError
from models import lifecycle
from models.database import Database

database = Database(sys.argv[1])
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
while True:
    with database.reading() as session:
        waiting = lifecycle.next_claimable(session, "cpu", limit=20)
    if not waiting:
        break
    for job_id in waiting:
        try:
            with database.writing() as session:
                claimed = lifecycle.claim(session, job_id, sys.argv[2], 600.0)
        except OperationalError:  # SQLite: five others write all the time, and it queues nobody
            continue
        if claimed is not None:
            sys.stdout.write(f"{job_id} {claimed.attempt}\\n")
database.close()
"""


@pytest.mark.timeout(280)
def test_each_job_is_claimed_exactly_once(database: Database, database_url: str) -> None:
    jobs = [new_id("job") for _ in range(JOBS)]
    with database.writing() as session:
        session.add_all(Job(id=job_id, owner="default", spec={}, resolved_spec={}) for job_id in jobs)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, database_url, f"wk_{number}"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        answers = [_let_go(worker) for worker in workers]
        claims = [line.split() for worker in answers for line in worker.communicate(timeout=240)[0].splitlines()]
        assert [worker.returncode for worker in workers] == [0] * PROCESSES
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert Counter(job_id for job_id, _ in claims) == Counter(jobs)
    assert {attempt for _, attempt in claims} == {"1"}
    with database.reading() as session:
        rows = session.execute(select(Job.status, Job.attempt, func.count()).group_by(Job.status, Job.attempt)).all()
        started = session.scalar(select(func.count()).where(Event.code == "started"))
    assert [tuple(row) for row in rows] == [("running", 1, JOBS)]
    assert started == JOBS


def _let_go(worker: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return worker
