"""What stands between a job's row and the process that trains it. Loads no torch.

`Supervisor.serve` claims a job, spawns a trainer in a process group of its own, renews the lease, stores what the
trainer reports, and ends the attempt: succeeded, failed, cancelled, paused, released or crashed. It alone writes to
the database, and each write carries the attempt's number. If the lease cannot be renewed, the trainer is killed before
anyone else may claim.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, assert_never

import structlog
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models import deployments, lifecycle, references, workers
from models.artifacts import Manifest, Store, read_manifest
from models.database import Database
from models.errors import ArtifactDamaged, Conflict, Fenced, LimbeckError, Missing, StorageFailure
from models.gates import Bounds, Decision, decide
from models.lifecycle import Bell, Claimed, Happening, NewStudent, Point
from models.settings import Settings
from models.specs import LocalTeacher, PretrainedStudent, ResolvedSpec, SelfTeacher, SplitByDataset
from models.tables import ENDED, Dataset, Job, Student, Teacher, new_id
from worker.child import TRAINER, Child
from worker.lease import Lease
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
    StopReason,
)

CANCEL_GRACE = 20.0
"""Seconds that a trainer has to stop when its job is cancelled."""
_LOOK_EVERY = 0.1
_PATIENCE_AFTER_EXIT = 5.0
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Message)

log = structlog.get_logger(__name__)

Verb = Callable[[Session], object]
"""A verb of the lifecycle that ends an attempt."""


class Supervisor:
    """Serves one job at a time in the thread that calls it; several threads may share one supervisor.

    `gpus`: the devices that slots are spread over. `trainer`: the command of a trainer, to which this process's id is
    added. Setting `draining` stops what runs, with a checkpoint, and claims nothing more.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        bell: Bell,
        worker_id: str,
        *,
        device: workers.Device = "cpu",
        gpus: Sequence[str] = (),
        trainer: Sequence[str] = TRAINER,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.bell = bell
        self.worker_id = worker_id
        self.device: workers.Device = device
        self.gpus = tuple(gpus)
        self.trainer = tuple(trainer)
        self.checkpoint_seconds = checkpoint_seconds
        self.draining = threading.Event()
        self._free = threading.BoundedSemaphore(settings.slots)
        self._lock = threading.Lock()
        self._running: dict[int, str] = {}  # slot to job

    @property
    def jobs(self) -> list[str]:
        """What runs now."""
        with self._lock:
            return sorted(self._running.values())

    def serve(self) -> bool:
        """Serve the best job that waits until its attempt has ended; False if there was none, or no free slot.

        Raises SQLAlchemyError where the database cannot be asked; what happens to the attempt itself is settled here.
        """
        if not self._free.acquire(blocking=False):
            return False
        try:
            return self._serve()
        finally:
            self._free.release()

    def _serve(self) -> bool:
        for device in workers.serves(self.device):
            with self.database.reading() as session:
                waiting = lifecycle.next_claimable(session, device)
            for job_id in waiting:
                if self.draining.is_set():
                    return False
                with self.database.writing() as session:
                    claimed = lifecycle.claim(session, job_id, self.worker_id, self.settings.lease_ttl)
                if claimed is not None:
                    with self._slot(job_id) as slot:
                        _Attempt(self, claimed, slot).run()
                    return True
        return False

    def tidy(self) -> None:
        """Remove what jobs have left here that ended when this worker was not looking."""
        folders = {path.name for path in _children(self.settings.jobs_folder)} - set(self.jobs)
        if not folders:
            return
        with self.database.reading() as session:
            alive = set(session.scalars(select(Job.id).where(Job.id.in_(folders), Job.status.not_in(ENDED))))
        for name in folders - alive:
            shutil.rmtree(self.settings.jobs_folder / name, ignore_errors=True)

    @contextmanager
    def _slot(self, job_id: str) -> Iterator[int]:
        with self._lock:
            slot = next(number for number in range(len(self._running) + 1) if number not in self._running)
            self._running[slot] = job_id
        try:
            yield slot
        finally:
            with self._lock:
                del self._running[slot]


class _Attempt:
    """One attempt at one job, from the claim to the row that ends it."""

    def __init__(self, supervisor: Supervisor, claimed: Claimed, slot: int) -> None:
        self.at = supervisor
        self.claimed = claimed
        self.slot = slot
        self.folder = supervisor.settings.jobs_folder / claimed.job_id / "attempts" / str(claimed.attempt)
        self.lease = Lease(supervisor.settings, supervisor.database, claimed)
        self.log = log.bind(job_id=claimed.job_id, attempt=claimed.attempt)
        self.asked: StopReason | None = None
        self.last: ResultLine | StoppedLine | ErrorLine | None = None

    def run(self) -> None:
        self.log.info("attempt_began")
        with self.lease:
            try:
                self._train()
            except Fenced:
                self.log.warning("attempt_fenced")
                self._give_up()
            except Exception as error:  # noqa: BLE001 - whatever it is, the job must not wait for its lease to run out
                self._settle(self._verb_for(error))
        self._tidy()

    def _train(self) -> None:
        assignment = self._assignment()
        for folder in (self.folder, self.folder / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        child = Child(self.at.trainer, self.folder, self._environment(assignment))
        try:
            self._watch(child, assignment)
        finally:
            status = child.kill()
        if self.lease.lost:
            raise Fenced("this attempt no longer holds the job")
        self.lease.flush()
        self._finish(status, child.tail)

    # What the trainer is given.

    def _assignment(self) -> Assignment:
        spec = ResolvedSpec.model_validate(self.claimed.resolved_spec)
        attempts = self.folder.parent
        earlier = (attempts / str(number) for number in range(self.claimed.attempt - 1, 0, -1))
        # A job that asked for a CPU stays on one; `auto` takes what this worker has.
        device: Literal["cpu", "gpu"] = "cpu" if spec.resources.device == "cpu" else self.at.device
        return Assignment(
            job_id=self.claimed.job_id,
            attempt=self.claimed.attempt,
            # Its address may be a secret, and what a student is does not depend on who is told of it.
            spec=spec.model_copy(update={"webhook": None}),
            datasets=self._datasets(spec),
            checkpoints_of_models=self._models(spec),
            models_folder=self.at.settings.models_folder,
            work=self.folder,
            previous=[folder for folder in earlier if folder.is_dir()],
            cache=self.at.settings.cache_folder,
            cache_bytes=self.at.settings.cache_bytes,
            device=device,
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
        teachers = [teacher for teacher in spec.teachers if isinstance(teacher, LocalTeacher | SelfTeacher)]
        texts = [teacher.model for teacher in teachers if teacher.model is not None]
        texts += [stage.student.model for stage in spec.stages if isinstance(stage.student, PretrainedStudent)]
        found = {}
        for text in texts:
            reference = references.parse(text)
            row: Student | Teacher | None
            with self.at.database.reading() as session:
                match reference.scheme:
                    case "student":
                        row = session.get(Student, reference.name)
                    case "teacher":
                        row = session.get(Teacher, reference.name)
                    case "hub" | "package" | "file":
                        continue  # the trainer finds these by itself
                    case _:
                        assert_never(reference.scheme)
            if row is None:
                raise Missing(f"{text} has been deleted", code="reference_not_found")
            found[text] = self.at.store.fetch_folder(row.artifact)
        return found

    def _environment(self, assignment: Assignment) -> dict[str, str]:
        # Temporary files go with the attempt.
        extra = {"TMPDIR": str(self.folder / "tmp")}
        if assignment.device == "cpu":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        elif self.at.gpus:
            extra["CUDA_VISIBLE_DEVICES"] = self.at.gpus[self.slot % len(self.at.gpus)]
        if self.at.settings.slots > 1 and "OMP_NUM_THREADS" not in os.environ:
            extra["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.at.settings.slots))
        return extra

    # While it runs. Nothing here touches the database: the lease has a thread for that.

    def _watch(self, child: Child, assignment: Assignment) -> None:
        """Until the trainer has ended, or must be ended."""
        child.send(assignment.model_dump_json())
        self.lease.on_beat = lambda: child.send('{"tick": 1}')
        kill_at = float("inf")
        gone_at = float("inf")
        while not self.lease.lost and time.monotonic() < min(kill_at, gone_at):
            wish = self._wish()
            if wish is not None and self.asked is None:
                self.asked = wish
                kill_at = time.monotonic() + (
                    CANCEL_GRACE if wish == "cancel" else self.at.settings.drain_timeout * 0.8
                )
                self.log.info("trainer_asked_to_stop", reason=wish)
                child.send(json.dumps({"stop": wish}))
            line = child.next_line(_LOOK_EVERY)
            if line is None:
                return
            if line:
                self._take(line)
            elif child.ended and gone_at == float("inf"):
                gone_at = time.monotonic() + _PATIENCE_AFTER_EXIT

    def _wish(self) -> StopReason | None:
        if self.lease.status == "cancelling":
            return "cancel"
        return "drain" if self.at.draining.is_set() or self.lease.status == "pausing" else None

    def _take(self, text: bytes) -> None:
        try:
            line = _MESSAGES.validate_json(text)
        except ValidationError:
            self.log.warning("bad_line_from_trainer", length=len(text))
            return
        match line:
            case PhaseLine():
                self.lease.saw(phase=line.phase)
                self.lease.happened(Happening("phase", f"Phase {line.phase} began.", {"phase": line.phase}))
                self.log.info("phase", phase=line.phase)
            case ProgressLine():
                self.lease.saw(progress=line.progress, eta=line.eta_seconds)
            case MetricLine():
                self.lease.point(Point(line.arm, line.stage, line.phase, line.name, line.step, line.value))
            case EventLine():
                self.lease.happened(Happening(line.code, line.message, line.data))
            case CheckpointLine():
                self.lease.checkpointed()
            case ResultLine() | StoppedLine() | ErrorLine():
                self.last = line
            case _:
                assert_never(line)

    # How it ends.

    def _finish(self, status: int, tail: str) -> None:
        job_id, attempt = self.claimed.job_id, self.claimed.attempt
        match self.last:
            case ResultLine(folder=folder, teacher=teacher):
                self._succeed(folder, teacher)
            case ErrorLine(code=code, message=message, hint=hint, pointer=pointer):
                self.log.info("attempt_failed", code=code, message=message)
                self._settle(
                    lambda session: lifecycle.fail(
                        session, job_id, attempt, code=code, message=message, hint=hint, pointer=pointer
                    )
                )
            case StoppedLine() | None if self.asked is not None:
                # What it was asked for, the row knows best: whoever paused it may have resumed it meanwhile.
                leaving = self.at.draining.is_set()
                reason = "its worker is shutting down" if leaving else "it was resumed while its trainer was stopping"
                self._settle(lambda session: lifecycle.release(session, job_id, attempt, reason))
            case StoppedLine() | None:
                self.log.warning("trainer_died", status=status, stderr=tail)
                how = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
                self._settle(lambda session: lifecycle.crashed(session, job_id, attempt, f"the trainer {how}"))
            case _:
                assert_never(self.last)

    def _verb_for(self, error: Exception) -> Verb:
        """How an attempt ends that this process could not carry through."""
        job_id, attempt = self.claimed.job_id, self.claimed.attempt
        self.log.warning("attempt_broken", error=type(error).__name__, exc_info=error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full:
            error = StorageFailure(
                "the worker's disk is full", code="storage_full", hint="free space, then run it again"
            )
        passing = isinstance(error, StorageFailure) and not isinstance(error, ArtifactDamaged)
        if isinstance(error, LimbeckError) and (not passing or error.code == "storage_full"):
            code, message, hint = error.code, error.message, error.hint
            return lambda session: lifecycle.fail(session, job_id, attempt, code=code, message=message, hint=hint)
        reason = f"its worker could not go on ({type(error).__name__})"
        return lambda session: lifecycle.crashed(session, job_id, attempt, reason)

    def _succeed(self, folder: Path, teacher: Path | None) -> None:
        """Publish, then one transaction: the job has succeeded, its student exists, and the gate has decided."""
        report = json.loads((folder / "report.json").read_text("utf-8"))
        promote = ResolvedSpec.model_validate(self.claimed.resolved_spec).promote
        decision = None if promote is None else decide(promote.gate, Bounds.of_report(report))
        student_id = new_id("st")
        told = [Happening("verdict", report["verdict"], {"student_id": student_id})]
        if promote is not None and decision is not None:
            told.append(_promotion(promote.deployment, decision))
        artifact = f"students/{student_id}"
        shared = None if teacher is None else self._share(teacher)
        manifest = self.at.store.publish(folder, artifact)
        new = NewStudent(student_id, manifest.student_hash, artifact, manifest.model_dump(mode="json"), report, shared)

        def success(session: Session) -> None:
            student = lifecycle.succeed(session, self.claimed.job_id, self.claimed.attempt, new, told)
            if promote is not None and decision is not None and decision.passed:
                deployments.promote(
                    session,
                    owner=student.owner,
                    name=promote.deployment,
                    student_id=student.id,
                    by=self.claimed.job_id,
                    gate=promote.gate.model_dump(mode="json"),
                    reason=decision.reason,
                )

        self._settle(success)
        # Asked, and not concluded from the above: a connection that broke in the commit does not say which it was.
        with self.at.database.reading() as session:
            there = session.get(Student, student_id) is not None
        if there:
            self.log.info("attempt_succeeded", student_id=student_id)
            if teacher is not None:
                self._share(teacher)  # again, if the last student that named it was deleted meanwhile
        else:
            self.at.store.delete(artifact)

    def _share(self, teacher: Path) -> str:
        """Publish a teacher's export, unless a job of the same teacher has; its key is a hash of its files.

        If the job then comes to nothing the export stays: another job may have found it there already.
        """
        key = f"exports/{content_hash(read_manifest(teacher))}"
        if not self.at.store.exists(key):
            try:
                self.at.store.publish(teacher, key)
            except Conflict:
                self.log.info("teacher_export_there", key=key)  # another worker was faster with the same files
        return key

    def _settle(self, verb: Verb) -> None:
        """Write how it ended, once the database answers. If somebody has asked to cancel meanwhile, it is cancelled.

        Gives up when the lease is lost: then the job is another attempt's, or the reaper's.
        """
        while True:
            try:
                with self.at.database.writing() as session:
                    verb(session)
            except Fenced:
                if verb == self._cancelled or self.lease.lost:
                    self.log.warning("attempt_fenced")
                    return
                verb = self._cancelled
            except SQLAlchemyError as error:
                self.log.warning("ending_not_stored", error=type(error).__name__)
                if self.lease.lost:
                    return
                time.sleep(0.5)
            else:
                return

    def _give_up(self) -> None:
        """Where only the database was away and nobody has the job, it need not wait until the lease has run out."""
        try:
            with self.at.database.writing() as session:
                reason = "its worker could not renew the lease"
                lifecycle.crashed(session, self.claimed.job_id, self.claimed.attempt, reason)
        except (Fenced, SQLAlchemyError) as error:
            self.log.info("attempt_abandoned", error=type(error).__name__)

    def _cancelled(self, session: Session) -> None:
        lifecycle.cancelled(session, self.claimed.job_id, self.claimed.attempt)

    def _tidy(self) -> None:
        """The folder goes with the job; a job that will be tried again needs its checkpoints."""
        try:
            with self.at.database.reading() as session:
                status = session.scalar(select(Job.status).where(Job.id == self.claimed.job_id))
        except SQLAlchemyError:
            return  # the next sweep tidies
        if status is None or status in ENDED:
            shutil.rmtree(self.at.settings.jobs_folder / self.claimed.job_id, ignore_errors=True)
        else:
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)


def content_hash(manifest: Manifest) -> str:
    """SHA-256 over the names and hashes of an artifact's files: equal files have equal ones, whoever made them."""
    lines = [f"{name}\0{entry.sha256}\n" for name, entry in sorted(manifest.files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _promotion(deployment: str, decision: Decision) -> Happening:
    code, moved = ("promoted", "now points at this student") if decision.passed else ("not_promoted", "was not moved")
    return Happening(code, f"The deployment {deployment!r} {moved}. {decision.reason}", {"deployment": deployment})


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
