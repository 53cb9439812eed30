"""The client of a Limbeck service.

with Client() as client:
    dataset = client.datasets.upload("tweets.csv")
    job = client.jobs.wait(client.jobs.submit({…, "dataset": {"id": dataset.id}}))
    answers = client.predict("sentiment", ["what a day"])
"""

import string
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from limbeck import address
from limbeck.datasets import Datasets, Teachers
from limbeck.deployments import Deployments
from limbeck.jobs import Jobs
from limbeck.keys import Keys
from limbeck.objects import Readiness, Worker, read
from limbeck.paging import page
from limbeck.predictions import CapturedPredictions, Predictions, answers_of
from limbeck.students import Students
from limbeck.transport import Transport, body

try:
    __version__ = version("limbeck")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0"

_PRINTABLE = f"{string.punctuation} "
"""What stands in a header as it is; the rest of a text is percent-encoded."""


class Client:
    """Speaks to one service. Close it, or use it in a `with`. May be shared by threads.

    `url` and `api_key` default to `LIMBECK_URL` and `LIMBECK_API_KEY`, else to the service that `limbeck up` started
    here: the address and the admin key in the data folder (`LIMBECK_DATA_DIR`, or `limbeck-data` where you are).
    `timeout`: seconds without an answer after which a request has failed.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout: float = 60.0) -> None:
        found = address.find(url, api_key)
        self.url = found.url
        self._transport = Transport(found.url, found.key, timeout=timeout, version=__version__)
        self.datasets = Datasets(self._transport)
        self.teachers = Teachers(self._transport)
        self.jobs = Jobs(self._transport)
        self.students = Students(self._transport)
        self.deployments = Deployments(self._transport)
        self.predictions = CapturedPredictions(self._transport)
        self.keys = Keys(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        self._transport.close()

    def predict(
        self,
        deployment: str,
        inputs: str | Mapping[str, str] | Sequence[str | Mapping[str, str]],
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        aggregation_strategy: str | None = None,
        sticky: str | None = None,
    ) -> Predictions:
        """For each input a list of labels, entities or answers, also for a single one.

        An input is a text, `{"text": …, "text_pair": …}` or `{"question": …, "context": …}`, as the deployment's task
        has it. `top_k`: so many labels of each text (default all), or answers to each question (default one).
        `function_to_apply`: softmax, sigmoid or none. `aggregation_strategy`: how tokens become entities, simple,
        first, average, max or none. `sticky`: whom the call is for; calls with the same one go to the same arm of a
        canary.
        """
        wanted = {
            "top_k": top_k,
            "function_to_apply": function_to_apply,
            "aggregation_strategy": aggregation_strategy,
        }
        parameters = {name: value for name, value in wanted.items() if value is not None}
        single = isinstance(inputs, str | Mapping)
        document: dict[str, Any] = {"inputs": inputs if single else list(inputs)}
        if parameters:
            document["parameters"] = parameters
        # A prediction changes nothing: it is safe to ask again.
        headers = {} if sticky is None else {"X-Limbeck-Sticky": quote(sticky, safe=_PRINTABLE)}
        response = self._transport.request(
            "POST", f"/predict/{deployment}", json=document, headers=headers, idempotent=True
        )
        answers = body(response)
        return Predictions(
            data=answers_of(answers, single=single),
            student=response.headers.get("x-limbeck-student"),
            prediction_id=response.headers.get("x-limbeck-prediction"),
            arm=response.headers.get("x-limbeck-arm"),
            answered_by=response.headers.get("x-limbeck-answered-by"),
            server_timing=response.headers.get("server-timing"),
            raw=answers,
        )

    def workers(self) -> Sequence[Worker]:
        """Who trains, and on what."""
        return page(self._transport, "/workers", Worker, limit=100).data

    def ready(self) -> Readiness:
        """How the service is, also while it is `unready`. Needs no key."""
        return read(Readiness, body(self._transport.request("GET", "/readyz", accept=frozenset({503}))))
