"""Which tests exercise which public methods of the SDK, so that none is left out unnoticed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

EXERCISED: set[str] = set()
"""Qualified names, such as "RestClient.get_session"."""


def exercises(*methods: Callable[..., Any]) -> Callable[[Test], Test]:
    """Mark a test with the methods that it calls, which its text must bear out."""

    def mark(test: Test) -> Test:
        source = inspect.getsource(test)
        for method in methods:
            name = method.__name__
            assert f".{name}(" in source, f"{test.__name__} does not call {method.__qualname__}"
            EXERCISED.add(method.__qualname__)
        return test

    return mark


def public_methods(client: type) -> set[str]:
    """The methods that a client's users are meant to call."""
    return {
        method.__qualname__
        for name, method in inspect.getmembers(client, inspect.isroutine)
        if not name.startswith("_") and method.__qualname__.startswith(f"{client.__name__}.")
    }


@contextmanager
def older_spelling() -> Iterator[None]:
    """The `*_async` methods work, and say that they will not for ever."""
    with pytest.warns(FutureWarning, match="DEPRECATED"), warnings.catch_warnings():
        yield
