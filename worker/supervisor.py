"""What stands between a job's row and the process that trains it. Loads no torch.

`Supervisor.serve` claims a job, spawns a trainer in a process group of its own, renews the lease, stores what the
trainer reports, and ends the attempt: succeeded, failed, cancelled, released or crashed. It alone writes to the
database, and each write carries the attempt's number. If the lease cannot be renewed, the trainer is killed before
anyone else may claim.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, assert_never

import structlog
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from models import deployments, lifecycle, references
from models.artifacts import Store
from models.database import Database
from models.errors import Fenced, LimbeckError, Missing
from models.gates import Bounds, decide
from models.lifecycle import Bell, Claimed, Happening, NewStudent, Point
from models.settings import Settings
from models.specs import LocalTeacher, PretrainedStudent, ResolvedSpec, SplitByDataset
from models.tables import Dataset, Student, Teacher, new_id
from worker.protocol import (
    Assignment,
    CheckpointLine,
    ErrorLine,
    EventLine,
    Message,
    MetricLine,
    PhaseLine,
    ProgressLine,
    ResultLine,
    StoppedLine,
)

log = structlog.get_logger(__name__)

TRAINER = (sys.executable, "-P", "-m", "worker.trainer")
_KEPT_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE",
    "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
)  # fmt: skip
"""All that a trainer gets of this process's environment: no LIMBECK_*, no AWS_*, no key of any kind."""
_CANCEL_GRACE = 20.0
_FLUSH_EVERY = 1.0
_LONGEST_LINE = 1 << 20
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Message)
_HOUSE = Path(__file__).resolve().parents[1]

Ending = Literal["drain", "cancel", "fenced"]


class Supervisor:
    """Serves one job at a time in the thread that calls it; several threads may share one supervisor."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        bell: Bell,
        worker_id: str,
        *,
        device: Literal["cpu", "gpu"] = "cpu",
        trainer: Sequence[str] = TRAINER,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.bell = bell
        self.worker_id = worker_id
        self.device: Literal["cpu", "gpu"] = device
        self.trainer = tuple(trainer)
        self.checkpoint_seconds = checkpoint_seconds
        self.draining = threading.Event()
        self.jobs: set[str] = set()

    def serve(self) -> bool:
        """Serve the best job that waits for this device; False if there was none."""
        if self.draining.is_set():
            return False
        with self.database.reading() as session:
            waiting = lifecycle.next_claimable(session, self.device)
        for job_id in waiting:
            with self.database.writing() as session:
                claimed = lifecycle.claim(session, job_id, self.worker_id, self.settings.lease_ttl)
            if claimed is not None:
                self.jobs.add(job_id)
                try:
                    _Attempt(self, claimed).run()
                finally:
                    self.jobs.discard(job_id)
                return True
        return False


class _Attempt:
    """One attempt at one job, from the claim to the row that ends it."""

    def __init__(self, supervisor: Supervisor, claimed: Claimed) -> None:
        self.at = supervisor
        self.claimed = claimed
        self.job_id = claimed.job_id
        self.number = claimed.attempt
        self.folder = supervisor.settings.jobs_folder / claimed.job_id / "attempts" / str(claimed.attempt)
        self.log = log.bind(job_id=claimed.job_id, attempt=claimed.attempt)
        self.ending: Ending | None = None
        self.kill_at = float("inf")
        self.renewed = time.monotonic()
        self.pending: dict[str, Any] = {}
        self.metrics: list[Point] = []
        self.events: list[Happening] = []
        self.checkpointed = False
        self.last: ResultLine | StoppedLine | ErrorLine | None = None

    def run(self) -> None:
        self.log.info("attempt_began")
        try:
            self._run()
        except Fenced:
            self.log.warning("attempt_fenced")
        except LimbeckError as error:
            failure = error
            self.log.warning("attempt_failed", code=failure.code)
            self._end(
                lambda session: lifecycle.fail(
                    session, self.job_id, self.number, code=failure.code, message=failure.message, hint=failure.hint
                )
            )

    def _run(self) -> None:
        assignment = self._assignment()
        self.folder.mkdir(parents=True, exist_ok=True)
        errors: deque[str] = deque(maxlen=60)
        with self._spawn() as process:
            try:
                self._watch(process, assignment, errors)
            finally:
                _kill_group(process)
        status = process.wait()
        if self.ending == "fenced":
            raise Fenced(f"attempt {self.number} of {self.job_id} lost its lease")
        self._finish(status, errors)

    # What the trainer is given.

    def _assignment(self) -> Assignment:
        spec = ResolvedSpec.model_validate(self.claimed.resolved_spec)
        attempts = self.folder.parent
        previous = [
            attempts / str(number) for number in range(self.number - 1, 0, -1) if (attempts / str(number)).is_dir()
        ]
        return Assignment(
            job_id=self.job_id,
            attempt=self.number,
            spec=spec,
            datasets=self._datasets(spec),
            checkpoints_of_models=self._models(spec),
            models_folder=self.at.settings.models_folder,
            work=self.folder,
            previous=previous,
            cache=self.at.settings.cache_folder,
            cache_bytes=self.at.settings.cache_bytes,
            device=self.at.device,
            tick_timeout=self.at.settings.self_fence_after,
            checkpoint_seconds=self.at.checkpoint_seconds,
        )

    def _datasets(self, spec: ResolvedSpec) -> dict[str, Path]:
        if isinstance(spec.dataset, SplitByDataset):
            ids = {spec.dataset.train, spec.dataset.validation, spec.dataset.test}
        else:
            ids = {spec.dataset.id}
        found = {}
        for dataset_id in ids:
            with self.at.database.reading() as session:
                dataset = session.get(Dataset, dataset_id)
            if dataset is None:
                raise Missing(f"the dataset {dataset_id} has been deleted", code="dataset_not_found")
            found[dataset_id] = self.at.store.fetch_file(dataset.artifact, sha256=dataset.sha256)
        return found

    def _models(self, spec: ResolvedSpec) -> dict[str, Path]:
        texts = [teacher.model for teacher in spec.teachers if isinstance(teacher, LocalTeacher)]
        texts += [stage.student.model for stage in spec.stages if isinstance(stage.student, PretrainedStudent)]
        found = {}
        for text in texts:
            reference = references.parse(text)
            if reference.scheme not in ("student", "teacher"):
                continue
            row: Student | Teacher | None
            with self.at.database.reading() as session:
                if reference.scheme == "student":
                    row = session.get(Student, reference.name)
                else:
                    row = session.get(Teacher, reference.name)
            if row is None:
                raise Missing(f"{text} has been deleted", code="reference_not_found")
            found[text] = self.at.store.fetch_folder(row.artifact)
        return found

    def _spawn(self) -> subprocess.Popen[str]:
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        # -P keeps the working directory out of the path; the house itself may be a checkout.
        environment["PYTHONPATH"] = str(_HOUSE)
        environment["TOKENIZERS_PARALLELISM"] = "true"
        return subprocess.Popen(
            self.at.trainer,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )

    # While it runs.

    def _watch(self, process: subprocess.Popen[str], assignment: Assignment, errors: deque[str]) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018, S101
        lines: queue.Queue[str | None] = queue.Queue(10_000)
        readers = [
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True),
            threading.Thread(target=_read_tail, args=(process.stderr, errors), daemon=True),
        ]
        for reader in readers:
            reader.start()
        self._send(process, assignment.model_dump_json())
        next_beat = next_flush = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self.at.settings.heartbeat_interval
                self._beat(process)
            if now >= next_flush:
                next_flush = now + _FLUSH_EVERY
                self._flush()
            if self.at.draining.is_set() and self.ending is None:
                self._ask_to_stop(process, "drain", self.at.settings.drain_timeout * 0.8)
            if self.ending == "fenced" or now >= self.kill_at:
                return
            try:
                text = lines.get(timeout=max(0.01, min(next_beat, next_flush, now + 0.2) - now))
            except queue.Empty:
                continue
            if text is None:
                for reader in readers:
                    reader.join(timeout=2)
                self._flush()
                return
            self._take(text)

    def _beat(self, process: subprocess.Popen[str]) -> None:
        try:
            with self.at.database.writing() as session:
                status = lifecycle.heartbeat(session, self.job_id, self.number, self.at.settings.lease_ttl)
        except SQLAlchemyError as error:
            self.log.warning("heartbeat_failed", error=type(error).__name__)
            if time.monotonic() - self.renewed > self.at.settings.self_fence_after:
                self.ending = "fenced"
            return
        if status is None:
            self.ending = "fenced"
            return
        self.renewed = time.monotonic()
        self._send(process, json.dumps({"tick": self.number}))
        if status in ("cancelling", "pausing") and self.ending is None:
            self._ask_to_stop(process, "cancel" if status == "cancelling" else "drain", _CANCEL_GRACE)

    def _ask_to_stop(self, process: subprocess.Popen[str], reason: Literal["cancel", "drain"], grace: float) -> None:
        self.ending = reason
        self.kill_at = time.monotonic() + grace
        self._send(process, json.dumps({"stop": reason}))

    def _send(self, process: subprocess.Popen[str], line: str) -> None:
        if process.stdin is None:
            return
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self.log.info("trainer_stopped_listening")

    def _take(self, text: str) -> None:
        try:
            line = _MESSAGES.validate_json(text)
        except ValidationError:
            self.log.warning("bad_line_from_trainer", length=len(text))
            return
        match line:
            case PhaseLine():
                self.pending["phase"] = line.phase
                self.events.append(Happening("phase", f"Phase {line.phase} began.", {"phase": line.phase}))
                self.log.info("phase", phase=line.phase)
            case ProgressLine():
                self.pending |= {"progress": line.progress, "eta": line.eta_seconds}
            case MetricLine():
                self.metrics.append(Point(line.arm, line.stage, line.phase, line.name, line.step, line.value))
            case EventLine():
                self.events.append(Happening(line.code, line.message, line.data))
            case CheckpointLine():
                self.checkpointed = True
            case ResultLine() | StoppedLine() | ErrorLine():
                self.last = line
            case _:
                assert_never(line)

    def _flush(self) -> None:
        """Store what came since the last time; what cannot be stored now is kept for the next."""
        if not (self.pending or self.metrics or self.events or self.checkpointed):
            return
        try:
            with self.at.database.writing() as session:
                lifecycle.record(
                    session, self.job_id, self.number, metrics=self.metrics, events=self.events, **self.pending
                )
                if self.checkpointed:
                    lifecycle.checkpointed(session, self.job_id, self.number)
        except Fenced:
            self.ending = "fenced"
        except SQLAlchemyError as error:
            self.log.warning("report_not_stored", error=type(error).__name__)
            return
        self.pending, self.metrics, self.events, self.checkpointed = {}, [], [], False

    # How it ends.

    def _finish(self, status: int, errors: deque[str]) -> None:
        match self.last:
            case ResultLine(folder=folder):
                self._succeed(folder)
            case ErrorLine() as line:
                self.log.info("attempt_failed", code=line.code, message=line.message)
                self._end(
                    lambda session: lifecycle.fail(
                        session,
                        self.job_id,
                        self.number,
                        code=line.code,
                        message=line.message,
                        hint=line.hint,
                        pointer=line.pointer,
                    )
                )
            case _ if self.ending == "cancel":
                self._end(lambda session: lifecycle.cancelled(session, self.job_id, self.number))
            case _ if self.ending == "drain":
                self._end(lambda session: lifecycle.release(session, self.job_id, self.number), keep=True)
            case _:
                self.log.warning("trainer_died", status=status, stderr="".join(errors)[-8000:])
                how = (
                    f"the trainer died of signal {-status}" if status < 0 else f"the trainer ended with status {status}"
                )
                self._end(
                    lambda session: lifecycle.crashed(session, self.job_id, self.number, how),
                    keep=True,
                )

    def _succeed(self, folder: Path) -> None:
        """Publish, then one transaction: the job has succeeded, its student exists, and the gate has decided."""
        report = json.loads((folder / "report.json").read_text("utf-8"))
        student_id = new_id("st")
        artifact = f"students/{student_id}"
        manifest = self.at.store.publish(folder, artifact)
        spec = ResolvedSpec.model_validate(self.claimed.resolved_spec)
        decision = None if spec.promote is None else decide(spec.promote.gate, Bounds.of_report(report))
        told = [Happening("verdict", report["verdict"], {"student_id": student_id})]
        if spec.promote is not None and decision is not None:
            moved = "now points at this student" if decision.passed else "was not moved"
            told.append(
                Happening(
                    "promoted" if decision.passed else "not_promoted",
                    f"The deployment {spec.promote.deployment!r} {moved}. {decision.reason}",
                    {"deployment": spec.promote.deployment},
                )
            )
        new = NewStudent(student_id, manifest.student_hash, artifact, manifest.model_dump(mode="json"), report)
        try:
            with self.at.database.writing() as session:
                student = lifecycle.succeed(session, self.job_id, self.number, new, told)
                session.flush()
                if spec.promote is not None and decision is not None and decision.passed:
                    deployments.promote(
                        session,
                        owner=student.owner,
                        name=spec.promote.deployment,
                        student_id=student.id,
                        by=self.job_id,
                        gate=spec.promote.gate.model_dump(mode="json"),
                        reason=decision.reason,
                    )
        except BaseException:
            self.at.store.delete(artifact)
            raise
        self.log.info("attempt_succeeded", student_id=student_id)
        self._tidy()

    def _end(self, verb: Callable[[Any], object], *, keep: bool = False) -> None:
        """The row that ends the attempt, tried until the lease would be somebody else's; then the folder goes."""
        while True:
            try:
                with self.at.database.writing() as session:
                    verb(session)
                break
            except SQLAlchemyError as error:
                self.log.warning("ending_not_stored", error=type(error).__name__)
                if time.monotonic() - self.renewed > self.at.settings.self_fence_after:
                    return
                time.sleep(0.5)
        if not keep:
            self._tidy()

    def _tidy(self) -> None:
        shutil.rmtree(self.at.settings.jobs_folder / self.job_id, ignore_errors=True)


def _read_lines(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    while text := stream.readline(_LONGEST_LINE):
        lines.put(text)
    lines.put(None)


def _read_tail(stream: IO[str], tail: deque[str]) -> None:
    while text := stream.readline(4096):
        tail.append(text)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Whatever is left of the trainer and its children: it leads its own group, and is not reaped before this."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
