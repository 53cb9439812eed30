"""An unmodified `huggingface_hub.InferenceClient` asks a deployment, on a socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from models.answers import Kind
from tests.app.conftest import Api
from tests.service import Service, running, settings_in

TEXT = "a good day in Paris"
QUESTION = {"question": "what kind of day?", "context": "a good day. nobody likes rain"}


@pytest.fixture(scope="module")
def service(folders: dict[Kind, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(settings_in(tmp_path_factory.mktemp("service"))) as found:
        state = found.app.state
        with found.client("admin") as http:
            for kind, folder in folders.items():
                student = Api(found.app, http, found.settings, found.database, state.store).student(folder)  # type: ignore[arg-type]
                assert http.put(f"/deployments/{kind}", json={"student": student}).status_code == 201
        yield found


def client(service: Service, kind: Kind, key: str | None = None) -> InferenceClient:
    return InferenceClient(model=f"{service.url}/predict/{kind}", token=key or service.key("predict"))


def test_text_classification(service: Service) -> None:
    with service.client("predict") as http:
        expected = http.post("/predict/text-classification", json={"inputs": TEXT}).json()[0]
    here = client(service, "text-classification")
    found = here.text_classification(TEXT)
    assert [(one.label, one.score) for one in found] == [(one["label"], one["score"]) for one in expected]
    few = here.text_classification(TEXT, top_k=1, function_to_apply="sigmoid")
    assert [one.label for one in few] == [expected[0]["label"]]
    assert few[0].score != found[0].score


@pytest.mark.parametrize("strategy", [None, "none", "max"])
def test_token_classification(service: Service, strategy: str | None) -> None:
    parameters = {} if strategy is None else {"aggregation_strategy": strategy}
    with service.client("predict") as http:
        body = {"inputs": TEXT, "parameters": parameters}
        expected = http.post("/predict/token-classification", json=body).json()
    found = client(service, "token-classification").token_classification(TEXT, **parameters)  # type: ignore[arg-type]
    name = "entity" if strategy == "none" else "entity_group"
    assert [(getattr(one, name), one.word, one.start, one.end, one.score) for one in found] == [
        (one[name], one["word"], one["start"], one["end"], one["score"]) for one in expected
    ]
    assert found


def test_question_answering(service: Service) -> None:
    with service.client("predict") as http:
        expected = http.post("/predict/question-answering", json={"inputs": QUESTION}).json()
    here = client(service, "question-answering")
    found = here.question_answering(**QUESTION)
    assert {name: getattr(found, name) for name in expected} == expected  # type: ignore[union-attr]
    several = here.question_answering(**QUESTION, top_k=3)
    assert isinstance(several, list)
    assert len(several) == 3
    assert several[0].answer == expected["answer"]


def test_refusals_are_told(service: Service) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        client(service, "text-classification", "hf_not_ours").text_classification(TEXT)
    with pytest.raises(HfHubHTTPError) as refused:
        client(service, "question-answering").question_answering(**QUESTION, max_answer_len=3)
    assert refused.value.response.json()["code"] == "unknown_parameter"
