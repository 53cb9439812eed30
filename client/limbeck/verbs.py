"""A verb of the API, written once as a coroutine, and called either way.

class Jobs(Generic[W_co]):
    @verb
    async def get(self, job: str) -> Job: …

`Client().jobs.get("job_…")` is a `Job`; `await AsyncClient().jobs.get("job_…")` is one. A `walk` is an asynchronous
generator in the same way: `for` or `async for`. Type checkers know the arguments and the result of both forms. A verb
that needs another one calls it by its class: `await Jobs.get(self, job)`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from limbeck.transport import Transport
from limbeck.wires import Blocking, Concurrent, W_co, finish, finish_each

P = ParamSpec("P")
T = TypeVar("T")


class Noun(Protocol[W_co]):
    """What has verbs."""

    @property
    def _transport(self) -> Transport[W_co]: ...


class Verb(Generic[P, T]):
    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(self, noun: Noun[Any], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._function(noun, *args, **kwargs)

    @overload
    def __get__(self, noun: None, owner: type) -> Self: ...

    @overload
    def __get__(self, noun: Noun[Blocking], owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, noun: Noun[Concurrent], owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, noun: Noun[Any] | None, owner: type) -> object:
        if noun is None:
            return self
        bound = MethodType(self._function, noun)
        if not _blocking(noun):
            return bound

        @wraps(bound)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return finish(self._function(noun, *args, **kwargs))

        return call


class Walk(Generic[P, T]):
    def __init__(self, function: Callable[Concatenate[Any, P], AsyncGenerator[T]]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(self, noun: Noun[Any], *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return self._function(noun, *args, **kwargs)

    @overload
    def __get__(self, noun: None, owner: type) -> Self: ...

    @overload
    def __get__(self, noun: Noun[Blocking], owner: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, noun: Noun[Concurrent], owner: type) -> Callable[P, AsyncIterator[T]]: ...

    def __get__(self, noun: Noun[Any] | None, owner: type) -> object:
        if noun is None:
            return self
        bound = MethodType(self._function, noun)
        if not _blocking(noun):
            return bound

        @wraps(bound)
        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            return finish_each(self._function(noun, *args, **kwargs))

        return call


verb = Verb
walk = Walk


def _blocking(noun: Noun[Any]) -> bool:
    return isinstance(noun._transport.wire, Blocking)  # noqa: SLF001 - a noun's verbs are a part of it
