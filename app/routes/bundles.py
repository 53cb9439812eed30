"""What lets a third party check a student: its files read again, and all that is needed to train it once more.

A bundle is a zip archive, format 1:

    job.json                 the job's spec, the student's hash, seeds, versions, hardware; the datasets and teachers
    datasets/<id>.parquet    the rows, each file with the SHA-256 that job.json has
    report.json              as published
    manifest.json            as published
    README.txt               how to repeat it

Teachers are named and not included.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, assert_never
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from app import security, views
from app.dependencies import DatabaseHere, SettingsHere, StoreHere
from app.security import Caller, needs
from app.uploads.disk import on_disk
from models import references
from models.artifacts import Manifest, Store, student_hash
from models.errors import ArtifactDamaged, Conflict, Invalid
from models.places import MANIFEST
from models.specs import DatasetSpec, ResolvedSpec, SplitByColumn, SplitByDataset, SplitByShare
from models.tables import Dataset, Job, Student

router = APIRouter(tags=["provenance"])

_CHUNK = 256 * 1024
_IN_MEMORY = 4 * 1024 * 1024
_REPORT = "report.json"


@router.post("/students/{student_id}/verify", openapi_extra=needs("read"))
def verify_student(student_id: str, database: DatabaseHere, store: StoreHere, who: Caller) -> views.Verification:
    """Read every file of a student again from the store, and compare it and the student's hash with what was published.

    Damage is an answer, and no error: `ok` is false, and each file that is wrong says why.
    """
    with database.reading() as session:  # closed before the files are read
        row = security.find(session, Student, student_id, who)
        artifact, published, expected = row.artifact, row.manifest, row.hash
    found = store.inspect(artifact, Manifest.model_validate(published))
    # Of the files that the manifest names: one that is missing changes the hash too.
    names = published["files"]
    over = student_hash({one.path: one.sha256 for one in found if one.sha256 is not None and one.path in names})
    files = [
        views.FileCheck(path=one.path, sha256=one.sha256, ok=one.problem is None, problem=one.problem) for one in found
    ]
    ok = over == expected and all(one.ok for one in files)
    return views.Verification(ok=ok, hash=expected, found_hash=over, files=files)


@router.get("/jobs/{job_id}/bundle", openapi_extra=needs("read"), response_class=StreamingResponse)
def read_bundle(
    job_id: str, database: DatabaseHere, store: StoreHere, settings: SettingsHere, who: Caller
) -> StreamingResponse:
    """All that is needed to train a job's student again, as a zip archive: `limbeck jobs rerun FILE.zip`.

    409 with the code `job_not_succeeded`, `student_deleted` or `dataset_deleted` where there is nothing to repeat.
    """
    with database.reading() as session:  # closed before the files are read
        job = security.find(session, Job, job_id, who)
        student, datasets = _student_of(session, job), _datasets_of(session, job)
        document, artifact = _document(job, student, datasets), student.artifact
        manifest = Manifest.model_validate(student.manifest)
        parts = [(row.id, row.artifact, row.sha256) for row in datasets]
    archive = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(settings.data_dir))  # noqa: SIM115 - closed when it has been sent
    try:
        with on_disk("the bundle"):
            _write(archive, store, document, artifact, manifest, parts)
            size = archive.tell()
            archive.seek(0)
    except BaseException:
        archive.close()
        raise
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.zip"', "Content-Length": str(size)}
    return StreamingResponse(_chunks(archive), media_type="application/zip", headers=headers)


# --- what belongs into a bundle ---------------------------------------------------------------------------------------


def _student_of(session: Session, job: Job) -> Student:
    if job.status != "succeeded":
        raise Conflict(
            f"this job is {job.status}",
            code="job_not_succeeded",
            hint="only a job that has succeeded has a student to repeat",
        )
    student = None if job.student_id is None else session.get(Student, job.student_id)
    if student is None:
        raise Conflict(
            "the student of this job has been deleted, and what it was with it",
            code="student_deleted",
            hint=f"train it again: POST /jobs/{job.id}/rerun",
        )
    return student


def _datasets_of(session: Session, job: Job) -> list[Dataset]:
    rows = []
    for id_ in dict.fromkeys(_ids(ResolvedSpec.model_validate(job.resolved_spec).dataset)):
        row = session.get(Dataset, id_)
        if row is None or row.owner != job.owner:
            raise Conflict(
                f"dataset {id_} has been deleted, and without its rows nothing can be repeated",
                code="dataset_deleted",
                hint="make bundles before datasets are deleted",
            )
        rows.append(row)
    return rows


def _ids(dataset: DatasetSpec) -> tuple[str, ...]:
    match dataset:
        case SplitByShare() | SplitByColumn():
            return (dataset.id,)
        case SplitByDataset():
            return (dataset.train, dataset.validation, dataset.test)
        case _:
            assert_never(dataset)


def _document(job: Job, student: Student, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """`job.json`."""
    manifest = student.manifest
    origins = [*manifest.get("teachers", ()), *manifest.get("bases", ())]
    return {
        "format": 1,
        "id": job.id,
        "name": job.name,
        # Whoever repeats it is not who is told of it here.
        "spec": {part: value for part, value in job.spec.items() if part != "webhook"},
        "resolved_spec": {**job.resolved_spec, "webhook": None},
        "student_hash": student.hash,
        "datasets": [{"id": row.id, "name": row.name, "rows": row.rows, "sha256": row.sha256} for row in datasets],
        "teachers": [{**origin, "included": False, "uploaded": _is_ours(origin["reference"])} for origin in origins],
        "loss_convention": manifest.get("loss_convention"),
        "seeds": manifest.get("seeds", {}),
        "versions": manifest.get("versions", {}),
        "hardware": manifest.get("hardware", {}),
    }


def _is_ours(reference: str) -> bool:
    """Whether only the service that ran the job has this checkpoint."""
    try:
        return references.parse(reference).scheme in {"student", "teacher"}
    except Invalid:  # a column, or a student's own past
        return False


# --- the archive ------------------------------------------------------------------------------------------------------


def _write(
    archive: IO[bytes],
    store: Store,
    document: dict[str, Any],
    artifact: str,
    manifest: Manifest,
    datasets: Sequence[tuple[str, str, str]],
) -> None:
    """Every file of a bundle into `archive`, verified. `datasets` are ids, keys in the store and SHA-256."""
    at = manifest.created_at.timetuple()[:6]
    with ZipFile(archive, "w") as bundle:

        def add(name: str, content: str | bytes) -> None:
            entry = ZipInfo(name, at)
            entry.compress_type = ZIP_DEFLATED
            bundle.writestr(entry, content)

        add("README.txt", _readme(document))
        add("job.json", json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        for id_, key, expected in datasets:
            entry = ZipInfo(f"datasets/{id_}.parquet", at)
            entry.compress_type = ZIP_STORED  # it is packed already
            rows = store.fetch_file(key, sha256=expected)
            with rows.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, _CHUNK)
        add(_REPORT, _report(store, artifact, manifest))
        add(MANIFEST, manifest.model_dump_json(indent=1))


def _report(store: Store, artifact: str, manifest: Manifest) -> bytes:
    """The report as published. Raises `ArtifactDamaged`."""
    stream, _ = store.open_file(artifact, _REPORT)
    with stream:
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != manifest.entry(_REPORT).sha256:
        raise ArtifactDamaged(f"{_REPORT} is not the file that was published")
    return content


def _readme(document: dict[str, Any]) -> str:
    teachers = document["teachers"]
    ours = [teacher["reference"] for teacher in teachers if teacher["uploaded"]]
    lines = [
        f"All that is needed to train the student of {document['id']} again. To repeat it on a running service:",
        "",
        f"    limbeck jobs rerun {document['id']}.zip --watch",
        "",
        "This uploads the rows (unless the service has them), submits the job, and compares the new student with the",
        f"old one, whose hash is {document['student_hash']}.",
        "On the processor, with the library versions and the number of threads that job.json has, they are the same",
        "bit for bit; elsewhere the last digits of weights may differ.",
        "",
        "By hand: upload datasets/*.parquet, put the new ids into the spec in job.json, and POST it to /jobs.",
        "",
        "Teachers are named and not included:" if teachers else "It needs no checkpoint.",
        *(f"    {teacher['reference']}  (licence: {teacher['license'] or 'unknown'})" for teacher in teachers),
    ]
    if ours:
        lines += [
            "",
            f"{', '.join(ours)}: only the service that ran the job has {'this' if len(ours) == 1 else 'these'}. For",
            "another one, upload the checkpoint there and put its reference into the spec.",
        ]
    return "\n".join(lines) + "\n"


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
