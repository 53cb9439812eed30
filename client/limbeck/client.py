"""The clients of a Limbeck service: `Client`, and `AsyncClient`, whose verbs are awaited.

with Client() as client:
    dataset = client.datasets.upload("tweets.csv")
    job = client.jobs.wait(client.jobs.submit({…, "dataset": {"id": dataset.id}}))
    answers = client.predict("sentiment", ["what a day"])

async with AsyncClient() as client:
    async for job in client.jobs.all(status="running"):
        print(await client.jobs.metrics(job))
"""

import string
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Generic, Self
from urllib.parse import quote

from limbeck import address, predicting
from limbeck.datasets import Datasets, Teachers
from limbeck.deployments import Deployments
from limbeck.jobs import Jobs
from limbeck.keys import Keys
from limbeck.objects import Readiness, SignInLink, Worker, read
from limbeck.paging import page
from limbeck.predictions import CapturedPredictions, Predictions, body_of
from limbeck.secrets import Secrets
from limbeck.students import Students
from limbeck.transport import Transport, body
from limbeck.verbs import verb
from limbeck.webhooks import Webhooks
from limbeck.wires import Blocking, Concurrent, W_co, connect, finish

try:
    __version__ = version("limbeck")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0"

_PRINTABLE = f"{string.punctuation} "
"""What stands in a header as it is; the rest of a text is percent-encoded."""


class Service(Generic[W_co]):
    """All nouns of one service, and the verbs that have none: what both clients are."""

    def __init__(self, transport: Transport[W_co]) -> None:
        self.url = transport.url
        self._transport = transport
        self.datasets = Datasets(transport)
        self.teachers = Teachers(transport)
        self.jobs = Jobs(transport)
        self.students = Students(transport)
        self.deployments = Deployments(transport)
        self.predictions = CapturedPredictions(transport)
        self.secrets = Secrets(transport)
        self.webhooks = Webhooks(transport)
        self.keys = Keys(transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @verb
    async def predict(
        self,
        deployment: str,
        inputs: str | Mapping[str, str] | Sequence[str | Mapping[str, str]],
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        aggregation_strategy: str | None = None,
        sticky: str | None = None,
        at_once: int = 4,
    ) -> Predictions:
        """For each input a list of labels, entities or answers, also for a single one.

        An input is a text, `{"text": …, "text_pair": …}` or `{"question": …, "context": …}`, as the deployment's task
        has it. `top_k`: so many labels of each text (default all), or answers to each question (default one).
        `function_to_apply`: softmax, sigmoid or none. `aggregation_strategy`: how tokens become entities, simple,
        first, average, max or none. `sticky`: whom the call is for; calls with the same one go to the same arm of a
        canary.

        A list may be of any length. What is more than one call takes is sent as several, `at_once` of them at a time,
        and answered in order.
        """
        headers = {} if sticky is None else {"X-Limbeck-Sticky": quote(sticky, safe=_PRINTABLE)}
        call = predicting.Call(
            self._transport,
            path=f"/predict/{deployment}",
            headers=headers,
            document=lambda some: body_of(some, top_k, function_to_apply, aggregation_strategy),
        )
        if isinstance(inputs, str | Mapping):
            return await call.ask(inputs)
        return await call.ask_all(list(inputs), at_once)

    @verb
    async def workers(self) -> Sequence[Worker]:
        """Who trains, and on what."""
        return (await page(self._transport, "/workers", Worker, limit=100)).data

    @verb
    async def ready(self) -> Readiness:
        """How the service is, also while it is `unready`. Needs no key."""
        return read(Readiness, body(await self._transport.request("GET", "/readyz", accept=frozenset({503}))))

    @verb
    async def alive(self) -> bool:
        """Whether the process answers, whatever else is wrong. Needs no key. Raises `ServiceUnreachable`."""
        return (await self._transport.request("GET", "/healthz")).is_success

    @verb
    async def metrics(self) -> str:
        """What the service counts, as the text that Prometheus reads."""
        return (await self._transport.request("GET", "/metrics")).text

    @verb
    async def sign_in_link(self) -> SignInLink:
        """A link to the service's pages that signs one browser in with this client's key, once."""
        return read(SignInLink, body(await self._transport.request("POST", "/ui/links")))


class Client(Service[Blocking]):
    """Speaks to one service. Close it, or use it in a `with`. May be shared by threads.

    `url` and `api_key` default to `LIMBECK_URL` and `LIMBECK_API_KEY`, else to the service that `limbeck up` started
    here: the address and the admin key in the data folder (`LIMBECK_DATA_DIR`, or `limbeck-data` where you are).
    `timeout`: seconds without an answer after which a request has failed.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout: float = 60.0) -> None:
        found = address.find(url, api_key)
        wire = connect(Blocking, found.url, found.key, timeout, f"limbeck/{__version__}")
        super().__init__(Transport(wire, found.url, timeout=timeout, version=__version__))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        finish(self._transport.close())


class AsyncClient(Service[Concurrent]):
    """The same for asyncio or trio: `await` its verbs, and `async for` what there are many of.

    Close it, or use it in an `async with`. It belongs to one event loop.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout: float = 60.0) -> None:
        found = address.find(url, api_key)
        wire = connect(Concurrent, found.url, found.key, timeout, f"limbeck/{__version__}")
        super().__init__(Transport(wire, found.url, timeout=timeout, version=__version__))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()
