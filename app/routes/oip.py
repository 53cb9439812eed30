"""The Open Inference Protocol, version 2, which KServe, Triton and others speak: their clients ask a deployment as is.

A model is a deployment. It has one version at a time, which has two names: the number that grows with every change of
the deployment, and the id of its student. Asked by that id, a canary gets none of the calls. `app.routes.tensors` says
what goes in and what comes out; keys, limits, arms, figures and captures are those of `/predict`.

An error is `{"error": "…"}`, as the protocol has it, with the status that it has elsewhere.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app import errors
from app.dependencies import DatabaseHere, DoorbellHere, json_of
from app.routes import health, predict, tensors
from app.routes.predict import Asked, Reply, Sticky
from app.routes.tensors import InferRequest, InferResponse, OutputTensor, Tensor, TensorMetadata
from app.security import Caller, needs
from app.serving.answering import Answering, Served
from app.serving.shelf import Loaded, Pointer, Shelf
from models.answers import Parameters
from models.database import Database
from models.errors import Invalid, Missing, Problem, Unavailable
from models.settings import Settings
from models.specs.parsing import problems
from models.tables import Deployment

router = APIRouter(tags=["open inference protocol"], prefix=errors.PROTOCOL)

EXTENSIONS = ("binary_tensor_data", "model_repository(index)")
PLATFORM = "onnxruntime_onnx"

# What the protocol's clients send of their own accord, and nothing here depends on.
_IGNORED = frozenset(
    {"binary_data_output", "content_type", "headers", "priority", "timeout"}
    | {"sequence_id", "sequence_start", "sequence_end"}
)
_HEADER_LENGTH = "Inference-Header-Content-Length"
_ASK = needs("predict")

Name = Annotated[str, Path(max_length=64)]
Version = Annotated[str, Path(max_length=64, description="the deployment's version, or the id of its student")]
HeaderLength = Annotated[
    str | None,
    Header(alias=_HEADER_LENGTH, max_length=20, description="bytes of the JSON document; the tensors' bytes follow"),
]


class Server(BaseModel):
    name: str = "limbeck"
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class Model(BaseModel):
    """What a model is. `parameters` are its `task`, its `student` and its `labels` in the order of `scores`."""

    name: str
    versions: list[str]
    platform: str = PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class ModelReady(BaseModel):
    name: str
    ready: bool


class Entry(BaseModel):
    """A model of the repository."""

    name: str
    version: str
    state: str
    reason: str = ""


class Wanted(BaseModel):
    """Which models of the repository: by default all."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False


# --- the server -------------------------------------------------------------------------------------------------------


@router.get("", openapi_extra=_ASK)
def read_server() -> Server:
    """The server's metadata, as the protocol has it."""
    return Server(version=metadata.version("limbeck-server"), extensions=list(EXTENSIONS))


@router.get("/health/live")
def live() -> Live:
    """The process answers."""
    return Live(live=True)


@router.get("/health/ready", responses={503: {"model": Ready}})
def ready(request: Request, response: Response, database: DatabaseHere, doorbell: DoorbellHere) -> Ready:
    """As `/readyz` says it."""
    found = health.readyz(request, response, database, doorbell)
    return Ready(ready=found.status != "unready")


@router.post("/repository/index", openapi_extra={**_ASK, **predict.taking(Wanted)})
async def read_index(request: Request, who: Caller) -> list[Entry]:
    """Every deployment. One whose student is not in memory is loaded when it is asked."""
    body = await request.body()
    try:
        wanted = Wanted.model_validate(json_of(body) if body.strip() else {})
    except ValidationError as error:
        raise Invalid.of(problems(error, json_of(body))) from error
    state = request.app.state
    shelf: Shelf = state.shelf
    entries = await run_in_threadpool(_entries, state.database, shelf, who.owner)
    return [entry for entry in entries if entry.state == "READY" or not wanted.ready]


def _entries(database: Database, shelf: Shelf, owner: str) -> list[Entry]:
    wanted = select(Deployment.name, Deployment.version, Deployment.student_id)
    with database.reading() as session:
        rows = session.execute(wanted.where(Deployment.owner == owner).order_by(Deployment.name)).all()
    loaded = set(shelf.loaded)
    return [
        Entry(name=name, version=str(version), state="READY" if student in loaded else "UNAVAILABLE")
        for name, version, student in rows
    ]


# --- a model ----------------------------------------------------------------------------------------------------------


@router.get("/models/{name}", openapi_extra=_ASK)
@router.get("/models/{name}/versions/{version}", openapi_extra=_ASK)
async def read_model(name: Name, request: Request, who: Caller, version: Version | None = None) -> Model:
    """What a deployment takes and answers, as tensors."""
    pointer, student = await _loaded(request, who.owner, name, version)
    runtime = student.runtime
    parameters: dict[str, Any] = {"task": runtime.kind, "student": student.student_id, "labels": list(runtime.labels)}
    return Model(
        name=name,
        versions=[str(pointer.version), pointer.student_id],
        inputs=tensors.taken(runtime),
        outputs=tensors.given(runtime),
        parameters=parameters,
    )


@router.get("/models/{name}/ready", openapi_extra=_ASK, responses={503: {"model": ModelReady}})
@router.get("/models/{name}/versions/{version}/ready", openapi_extra=_ASK, responses={503: {"model": ModelReady}})
async def model_ready(
    name: Name, request: Request, response: Response, who: Caller, version: Version | None = None
) -> ModelReady:
    """Whether its student answers; it is loaded if need be."""
    try:
        await _loaded(request, who.owner, name, version)
    except Unavailable:
        response.status_code = 503
        return ModelReady(name=name, ready=False)
    return ModelReady(name=name, ready=True)


_INFER = {**_ASK, **predict.taking(InferRequest)}


@router.post("/models/{name}/infer", openapi_extra=_INFER, response_model=InferResponse)
@router.post("/models/{name}/versions/{version}/infer", openapi_extra=_INFER, response_model=InferResponse)
async def infer(
    name: Name,
    request: Request,
    who: Caller,
    version: Version | None = None,
    sticky: Sticky = None,
    header_length: HeaderLength = None,
) -> Response:
    """The answers of a deployment as tensors. Headers say who gave them, as those of `/predict` do."""
    shelf: Shelf = request.app.state.shelf

    def read(body: bytes, settings: Settings) -> Asked:
        document, tail = _split(body, header_length)
        asked = _parsed(document)
        inputs = tensors.inputs_of(asked.inputs, tail, settings)
        writing = _Writing(shelf, asked)
        return Asked(inputs, False, _parameters(asked.parameters), writing, lambda pointer: _at(pointer, version))

    return await predict.answer(request, who, name, sticky, read)


async def _loaded(request: Request, owner: str, name: str, version: str | None) -> tuple[Pointer, Loaded]:
    """Raises `Missing`, and `Unavailable` if the student cannot serve."""
    state = request.app.state
    answering: Answering = state.answering
    shelf: Shelf = state.shelf
    pointer = _at(await answering.pointer(owner, name), version)
    return pointer, await run_in_threadpool(shelf.fetch, pointer.student_id)


def _at(pointer: Pointer, version: str | None) -> Pointer:
    """The deployment at a version. Raises `Missing` for one that it has no more, or not yet."""
    if version is None or version == str(pointer.version):
        return pointer
    if version == pointer.student_id:
        return replace(pointer, traffic=pointer.traffic.model_copy(update={"canary": None}))
    raise Missing(
        f"{pointer.name!r} does not serve version {version!r}; it is at version {pointer.version}, {pointer.student_id}"
    )


# --- a call -----------------------------------------------------------------------------------------------------------


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON document, and what follows it. Raises `Invalid`."""
    if header_length is None:
        return body, b""
    if not header_length.isdecimal() or int(header_length) > len(body):
        said = f"is not a number of bytes of this body, which has {len(body)}"
        raise Invalid.of([Problem(f"/header/{_HEADER_LENGTH.lower()}", said, "invalid")])
    return body[: int(header_length)], body[int(header_length) :]


def _parsed(body: bytes) -> InferRequest:
    document = json_of(body)
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        raise Invalid.of(problems(error, document)) from error


def _parameters(given: dict[str, Any]) -> Parameters:
    """What is chosen. Raises `Invalid`."""
    return Parameters.parse({name: value for name, value in given.items() if name not in _IGNORED})


@dataclass(frozen=True)
class _Writing:
    """How a call is answered."""

    shelf: Shelf
    asked: InferRequest

    def __call__(self, pointer: Pointer, served: Served, kept: str | None) -> Reply:
        # A canary may have the same labels in another order than the student of whom the metadata speak.
        stable = self.shelf.at_hand(pointer.student_id) or served.student
        few = self.asked.parameters.get("top_k") is not None
        outputs = tensors.outputs_of(served.student.runtime.kind, stable.runtime.labels, served.answers, few=few)
        chosen = self._chosen(outputs)
        said = {
            "student": served.student.student_id,
            "arm": served.arm,
            "answered_by": served.answered_by,
            "prediction": kept,
        }
        written = [_written(tensor, binary) for tensor, binary in chosen]
        document = InferResponse(
            model_name=pointer.name,
            model_version=str(pointer.version),
            id=self.asked.id,
            parameters={name: value for name, value in said.items() if value is not None},
            outputs=[tensor for tensor, _ in written],
        )
        head = json.dumps(document.model_dump(exclude_none=True), ensure_ascii=False, separators=(",", ":")).encode()
        tail = b"".join(packed for _, packed in written)
        if not tail:
            return Reply(head)
        return Reply(head + tail, "application/octet-stream", {_HEADER_LENGTH: str(len(head))})

    def _chosen(self, outputs: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
        """The outputs that are wanted, and whether as bytes. Raises `Invalid`."""
        always = self.asked.parameters.get("binary_data_output") is True
        if not self.asked.outputs:
            return [(tensor, always) for tensor in outputs]
        by_name = {tensor.name: tensor for tensor in outputs}
        known = ", ".join(by_name)
        wrong = [
            Problem(f"/outputs/{index}/name", f"is not an output of this model; it has {known}", "invalid")
            for index, one in enumerate(self.asked.outputs)
            if one.name not in by_name
        ]
        wrong += [
            Problem(f"/outputs/{index}/parameters/classification", "is not supported; read `scores`", "invalid")
            for index, one in enumerate(self.asked.outputs)
            if one.parameters.get("classification")
        ]
        if wrong:
            raise Invalid.of(wrong)
        return [(by_name[one.name], bool(one.parameters.get("binary_data", always))) for one in self.asked.outputs]


def _written(tensor: Tensor, binary: bool) -> tuple[OutputTensor, bytes]:
    shape = list(tensor.shape)
    if not binary:
        return OutputTensor(name=tensor.name, datatype=tensor.datatype, shape=shape, data=list(tensor.data)), b""
    packed = tensor.binary
    parameters = {"binary_data_size": len(packed)}
    return OutputTensor(name=tensor.name, datatype=tensor.datatype, shape=shape, parameters=parameters), packed
