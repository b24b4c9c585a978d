"""The spellings of the `tinker` SDK that are not ours, made from ours in one place.

Our calls return at once, and what they return can be awaited; so an `_async` twin says nothing
new, but loops written for that SDK use them. Three kinds, by what awaiting the twin gives there:

    submitted   the APIFuture, to be awaited once more:   future = await client.optim_step_async(...)
    resolved    the result:                               response = await client.sample_async(...)
    offloaded   the result of a call that blocks here:    client = await service.create_..._async(...)

A call that blocks and has a place in line has a twin written out, since a thread may start late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from tinkerlite.future import APIFuture

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")
SelfT = TypeVar("SelfT", bound="Ready")

AwaitableConcurrentFuture = APIFuture
"""Made there from a `concurrent.futures.Future`, as here."""

Twin = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def submitted(method: Callable[Concatenate[S, P], APIFuture[T]]) -> Twin[S, P, APIFuture[T]]:
    """A twin that is awaited for the future, which is awaited for the result."""

    @wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> APIFuture[T]:
        return method(self, *args, **kwargs)

    return _named(twin, method)


def resolved(method: Callable[Concatenate[S, P], APIFuture[T]]) -> Twin[S, P, T]:
    """A twin that is awaited for the result."""

    @wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    return _named(twin, method)


def offloaded(method: Callable[Concatenate[S, P], T]) -> Twin[S, P, T]:
    """A twin that runs a blocking call in a thread."""

    @wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return _named(twin, method)


def _named(twin: Twin[S, P, T], method: Callable[..., Any]) -> Twin[S, P, T]:
    twin.__name__ = f"{method.__name__}_async"
    twin.__qualname__ = f"{method.__qualname__}_async"
    twin.__doc__ = f"`{method.__name__}`, as the `tinker` SDK spells it in async code."
    return twin


class Ready:
    """A client that may also be used as the future of itself.

    There, `create_..._client` returns a future of the client; here the client, when it is ready.
    """

    def result(self: SelfT, timeout: float | None = None) -> SelfT:
        """This client."""
        return self

    async def result_async(self: SelfT, timeout: float | None = None) -> SelfT:
        """This client."""
        return self

    def __await__(self: SelfT) -> Generator[None, None, SelfT]:
        return self
        yield  # makes this a generator, as await wants one
