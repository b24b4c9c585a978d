"""Every public method has a test; those that this server does not offer say so, and at once."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from methods import EXERCISED, public_methods
from tinker import RestClient, SamplingClient, ServiceClient, TrainingClient

CLIENTS = (ServiceClient, TrainingClient, SamplingClient, RestClient)

NOT_OFFERED: dict[str, Callable[[ServiceClient, RestClient], Any]] = {
    # accounts
    "RestClient.whoami": lambda service, rest: rest.whoami(),
    # administration and billing
    "RestClient.get_audit_log": lambda service, rest: rest.get_audit_log(),
    "RestClient.get_billing_usage": lambda service, rest: rest.get_billing_usage("2026-01-01", "2026-02-01"),
    "RestClient.get_current_checkpoint_storage_usage": lambda service, rest: (
        rest.get_current_checkpoint_storage_usage()
    ),
    # the hosted service's console
    "RestClient.export_session_trace": lambda service, rest: rest.export_session_trace("a"),
}


def test_every_public_method_is_exercised_or_known_not_to_be_offered():
    for file in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(file.stem)
    methods = set().union(*(public_methods(client) for client in CLIENTS))
    known = EXERCISED | set(NOT_OFFERED) | {f"{name}_async" for name in NOT_OFFERED}
    assert methods - known == set()
    print(f"{len(methods & EXERCISED)} of {len(methods)} public methods are exercised")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", NOT_OFFERED)
def test_what_is_not_offered_says_so_at_once(service: ServiceClient, rest: RestClient, method: str):
    started = time.monotonic()
    with pytest.raises(Exception, match=r"is not a route of this server|requires JWT"):
        NOT_OFFERED[method](service, rest).result(timeout=60)
    assert time.monotonic() - started < 5
