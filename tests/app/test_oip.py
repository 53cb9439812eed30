"""The Open Inference Protocol, by hand over HTTP and through an unmodified client of another house on a socket."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from models.answers import Kind
from tests.app.conftest import Api, eventually
from tests.app.conftest import running as in_process
from tests.factories import LABELS
from tests.service import Service, running, settings_in
from tests.students import TAGS

TEXTS = ["a good day", "nobody likes rain", "ok"]
HEADER = "Inference-Header-Content-Length"


def tensor(name: str, data: list[Any], *shape: int, **options: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape or (len(data),)), "datatype": "BYTES", "data": data, **options}


def ask(api: Api, *inputs: dict[str, Any], path: str = "/v2/models/default/infer", **fields: Any) -> Any:
    return api.client.post(path, json={"inputs": list(inputs), **fields})


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["outputs"]}


class TestInfer:
    @pytest.mark.parametrize("column", [False, True])
    def test_the_same_answers_as_predict(self, api: Api, student_folder: Path, column: bool) -> None:
        student = api.deployed(student_folder)
        data: list[Any] = [[text] for text in TEXTS] if column else TEXTS
        answer = ask(api, tensor("text", data, *([3, 1] if column else [3])), id="r-1")
        found = outputs(answer)
        expected = api.client.post("/predict", json={"inputs": TEXTS}).json()
        assert found["label"]["data"] == [row[0]["label"] for row in expected]
        assert found["score"]["data"] == [row[0]["score"] for row in expected]
        assert (found["scores"]["shape"], found["scores"]["datatype"]) == ([3, len(LABELS)], "FP32")
        by_label = [{one["label"]: one["score"] for one in row} for row in expected]
        assert found["scores"]["data"] == [row[label] for row in by_label for label in LABELS]
        document = answer.json()
        assert (document["id"], document["model_name"], document["model_version"]) == ("r-1", "default", "1")
        assert document["parameters"] == {"student": student, "arm": "stable"}
        assert answer.headers["X-Limbeck-Student"] == student

    def test_the_best_few(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        found = outputs(ask(api, tensor("text", TEXTS), parameters={"top_k": 2}))
        expected = api.client.post("/predict", json={"inputs": TEXTS, "parameters": {"top_k": 2}}).json()
        assert found.keys() == {"label", "score"}
        assert found["label"]["shape"] == [3, 2]
        assert found["label"]["data"] == [one["label"] for row in expected for one in row]

    def test_every_kind_of_task(self, api: Api, folders: dict[Kind, Path]) -> None:
        for kind, folder in folders.items():
            api.deployed(folder, kind)
        number = outputs(
            ask(api, tensor("text", TEXTS), tensor("text_pair", TEXTS[::-1]), path="/v2/models/text-regression/infer")
        )
        pairs = [{"text": one, "text_pair": other} for one, other in zip(TEXTS, TEXTS[::-1], strict=True)]
        expected = api.client.post("/predict/text-regression", json={"inputs": pairs}).json()
        assert number["score"]["data"] == [row[0]["score"] for row in expected]
        assert number.keys() == {"score"}

        entities = outputs(ask(api, tensor("text", TEXTS), path="/v2/models/token-classification/infer"))
        expected = api.client.post("/predict/token-classification", json={"inputs": TEXTS}).json()
        assert [json.loads(row) for row in entities["entities"]["data"]] == expected

        question = {"question": "who?", "context": "a good day. nobody likes rain"}
        asked = [tensor(name, [value]) for name, value in question.items()]
        path = "/v2/models/question-answering/infer"
        answer = outputs(ask(api, *asked, path=path, parameters={"top_k": 2}))
        spans = api.client.post(
            "/predict/question-answering", json={"inputs": question, "parameters": {"top_k": 2}}
        ).json()
        assert json.loads(answer["answers"]["data"][0]) == spans
        assert (answer["answer"]["data"], answer["score"]["data"]) == ([spans[0]["answer"]], [spans[0]["score"]])

    def test_counted_as_predict_is(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        ask(api, tensor("text", TEXTS))
        ask(api, tensor("text", TEXTS), path="/v2/models/made-up/infer")
        text = api.client.get("/metrics").text
        assert 'limbeck_predict_requests_total{deployment="default",outcome="ok"} 1.0' in text
        assert "made-up" not in text

    def test_captured_as_predict_is(self, api: Api, student_folder: Path) -> None:
        student = api.student(student_folder)
        api.client.put("/deployments/default", json={"student": student, "capture": {"sample": 1.0}})
        answer = ask(api, tensor("text", TEXTS))
        kept = answer.json()["parameters"]["prediction"]
        assert kept == answer.headers["X-Limbeck-Prediction"]

        def there() -> bool:
            found = api.client.get("/deployments/default/captures").json()["data"]
            return {one["id"] for one in found} == {f"{kept}.{row}" for row in range(3)}

        eventually(there)

    def test_versions(self, api: Api, student_folder: Path, other_folder: Path) -> None:
        student, canary = api.student(student_folder), api.student(other_folder)
        wanted = {"student": student, "canary": {"student": canary, "fraction": 0.999999}}
        api.client.put("/deployments/default", json=wanted)
        eventually(lambda: canary in api.app.state.shelf.loaded)
        by = {
            version: ask(api, tensor("text", TEXTS), path=f"/v2/models/default/versions/{version}/infer")
            for version in ("1", student, "2", canary)
        }
        assert by["1"].json()["parameters"] == {"student": canary, "arm": "canary"}
        assert by[student].json()["parameters"] == {"student": student, "arm": "stable"}
        assert [by[version].status_code for version in ("2", canary)] == [404, 404]
        assert f"it is at version 1, {student}" in by["2"].json()["error"]


@pytest.fixture(scope="module")
def narrow(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """It takes 5 texts of 100 characters."""
    chosen = settings_in(tmp_path_factory.mktemp("narrow"), max_predict_inputs=5, max_text_chars=100)
    with in_process(chosen) as api:
        api.deployed(student_folder)
        yield api


class TestRefusals:
    @pytest.mark.parametrize(
        ("inputs", "fields", "said"),
        [
            ([], {}, "/inputs are not"),
            ([tensor("word", ["a"])], {}, "/inputs are not"),
            ([tensor("text", ["a"]), tensor("text", ["a"])], {}, "/inputs are not"),
            ([tensor("text", ["a"]), tensor("text_pair", ["a", "b"])], {}, "differ"),
            ([tensor("text", ["a"], 2)], {}, "/inputs/0/data has 1 strings"),
            ([tensor("text", ["a"], 1, 2)], {}, "/inputs/0/shape"),
            ([tensor("text", [], 0)], {}, "empty"),
            ([tensor("text", ["a"] * 6)], {}, "one call takes 5"),
            ([tensor("text", ["a", "b" * 101])], {}, "/inputs/0/data/1 has 101 characters"),
            ([tensor("text", [1])], {}, "/inputs/0/data/0 is not a string"),
            ([tensor("text", ["a"], datatype="FP32")], {}, "/inputs/0/datatype"),
            ([tensor("text", ["a"])], {"outputs": [{"name": "logits"}]}, "it has label, score, scores"),
            ([tensor("text", ["a"])], {"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "scores"),
            ([tensor("text", ["a"])], {"parameters": {"heat": 1}}, "unknown_parameter: /parameters/heat"),
            ([tensor("text", ["a"])], {"colour": 1}, "/colour is not a field"),
            ([tensor("question", ["a"]), tensor("context", ["a"])], {}, "single texts"),
        ],
    )
    def test_what_cannot_be_answered(self, narrow: Api, inputs: list[Any], fields: dict[str, Any], said: str) -> None:
        answer = ask(narrow, *inputs, **fields)
        assert answer.status_code == 422, answer.text
        assert answer.json().keys() == {"error"}
        assert said in answer.json()["error"]

    @pytest.mark.parametrize(
        ("tail", "size", "length", "said"),
        [
            (b"\x02\0\0\0a", 5, None, "longer than what is left"),
            (b"\x01\0\0\0\xff", 5, None, "not UTF-8"),
            (b"\x01\0\0\0a", 9, None, "says 9 bytes"),
            (b"\x01\0\0\0a", -1, None, "says -1 bytes"),
            (b"\x01\0\0\0a?", 5, None, "belong to no tensor"),
            (b"\x01\0\0\0a", 5, "9999", HEADER.lower()),
            (b"\x01\0\0\0a", 5, "x", HEADER.lower()),
        ],
    )
    def test_bytes_that_are_no_strings(
        self, narrow: Api, tail: bytes, size: int, length: str | None, said: str
    ) -> None:
        one = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [one]}).encode()
        headers = {HEADER: length or str(len(head))}
        answer = narrow.client.post("/v2/models/default/infer", content=head + tail, headers=headers)
        assert (answer.status_code, answer.json().keys()) == (422, {"error"})
        assert said in answer.json()["error"]


class TestServer:
    def test_health_needs_no_key(self, api: Api) -> None:
        api.client.headers.pop("Authorization")
        assert api.client.get("/v2/health/live").json() == {"live": True}
        assert api.client.get("/v2/health/ready").json() == {"ready": True}
        api.app.state.leaving = True
        answer = api.client.get("/v2/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"ready": False})

    def test_everything_else_does(self, api: Api, student_folder: Path) -> None:
        api.deployed(student_folder)
        reader = api.as_("read")
        other = api.as_("predict", owner="other")
        for path in ("/v2", "/v2/models/default", "/v2/models/default/ready"):
            refused = reader.get(path)
            assert (refused.status_code, refused.json().keys()) == (403, {"error"})
        assert reader.post("/v2/models/default/infer", json={}).status_code == 403
        assert other.get("/v2/models/default").json() == {"error": "not_found: there is no deployment 'default'"}
        assert other.post("/v2/repository/index").json() == []
        api.client.headers.pop("Authorization")
        assert api.client.get("/v2").json()["error"].startswith("unauthenticated: this needs a valid key")

    def test_addresses_that_are_not_there(self, api: Api) -> None:
        assert api.client.get("/v2/models").json().keys() == {"error"}
        assert api.client.get("/v22").json()["code"] == "not_found"

    def test_metadata(self, api: Api, folders: dict[Kind, Path]) -> None:
        found = {}
        for kind, folder in folders.items():
            student = api.deployed(folder, kind)
            found[kind] = api.client.get(f"/v2/models/{kind}").json()
            assert found[kind]["versions"] == ["1", student]
            assert api.client.get(f"/v2/models/{kind}/versions/{student}").json() == found[kind]
        texts = found["text-classification"]
        assert texts["parameters"]["labels"] == list(LABELS)
        assert texts["outputs"][2] == {"name": "scores", "datatype": "FP32", "shape": [-1, len(LABELS)]}
        assert [one["name"] for one in found["text-regression"]["inputs"]] == ["text", "text_pair"]
        assert [one["name"] for one in found["token-classification"]["inputs"]] == ["text"]
        assert found["token-classification"]["parameters"]["labels"] == list(TAGS)
        assert [one["name"] for one in found["question-answering"]["inputs"]] == ["question", "context"]

    def test_a_student_that_cannot_serve_is_not_ready(self, api: Api, student_folder: Path) -> None:
        student = api.deployed(student_folder)
        assert api.client.get("/v2/models/default/ready").json() == {"name": "default", "ready": True}
        (api.settings.data_dir / "artifacts" / "students" / student / "config.json").write_text("{}")
        api.app.state.shelf.forget(student)
        answer = api.client.get(f"/v2/models/default/versions/{student}/ready")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert api.client.get("/v2/models/nothing/ready").status_code == 404


@pytest.fixture(scope="module")
def service(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(settings_in(tmp_path_factory.mktemp("service"))) as found:
        api = Api(found.app, found.client("admin"), found.settings, found.database, found.app.state.store)  # type: ignore[arg-type]
        api.deployed(student_folder, "mood")
        yield found


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # it does not read every refusal to its end
class TestTritonClient:
    """NVIDIA's client, whose own choice is the binary form."""

    @pytest.fixture
    def client(self, service: Service) -> Iterator[InferenceServerClient]:
        client = InferenceServerClient(service.url.removeprefix("http://"))
        yield client
        client.close()
        gc.collect()

    @pytest.fixture
    def key(self, service: Service) -> dict[str, str]:
        return {"Authorization": f"Bearer {service.key('predict')}"}

    @staticmethod
    def texts(shape: tuple[int, ...], *, binary: bool = True) -> InferInput:
        data: NDArray[np.object_] = np.array([text.encode() for text in TEXTS], dtype=np.object_).reshape(shape)
        one = InferInput("text", list(shape), "BYTES")
        one.set_data_from_numpy(data, binary_data=binary)
        return one

    def test_server(self, client: InferenceServerClient, key: dict[str, str]) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata(headers=key)["name"] == "limbeck"
        assert client.is_model_ready("mood", headers=key)
        assert client.is_model_ready("mood", "1", headers=key)
        assert not client.is_model_ready("nothing", headers=key)
        assert client.get_model_metadata("mood", headers=key)["platform"] == "onnxruntime_onnx"
        assert client.get_model_repository_index(headers=key) == [
            {"name": "mood", "version": "1", "state": "READY", "reason": ""}
        ]

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_infer(
        self, service: Service, client: InferenceServerClient, key: dict[str, str], shape: tuple[int, ...], binary: bool
    ) -> None:
        wanted = None if binary else [InferRequestedOutput(name, binary_data=False) for name in ("label", "scores")]
        found = client.infer(
            "mood", [self.texts(shape, binary=binary)], outputs=wanted, request_id="seven", headers=key
        )
        with service.client("predict") as http:
            expected = http.post("/predict/mood", json={"inputs": TEXTS}).json()
        labels = found.as_numpy("label")
        assert [one.decode() if isinstance(one, bytes) else one for one in labels] == [
            row[0]["label"] for row in expected
        ]
        scores = found.as_numpy("scores")
        assert scores.dtype == np.float32
        by_label = [{one["label"]: one["score"] for one in row} for row in expected]
        np.testing.assert_allclose(scores, [[row[label] for label in LABELS] for row in by_label], rtol=1e-6)
        assert found.get_response()["id"] == "seven"
        assert (found.as_numpy("score") is None) == (not binary)

    def test_errors_are_understood(self, client: InferenceServerClient, key: dict[str, str]) -> None:
        with pytest.raises(InferenceServerException, match="there is no deployment 'nothing'"):
            client.infer("nothing", [self.texts((3,))], headers=key)
        with pytest.raises(InferenceServerException, match="unauthenticated"):
            client.infer("mood", [self.texts((3,))])
