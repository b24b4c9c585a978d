"""Our client against the official one, name by name: what users of that SDK find here, and what not."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tinkerlite

SCRIPT = Path(__file__).parent / "official" / "public_names.py"

_BILLING = "billing and audit are the hosted service's alone"
_CONSOLE = "the hosted service's web pages"
_TELEMETRY = "this client sends none"
_SERVER_LOSS = "losses that run on the server: alpha there; forward_backward_custom runs them here"
_RETRY = "how long to wait and what to repeat is ClientConfig's, for all clients of a service"
_INTERNAL = "how that SDK is built inside"

GAPS: dict[str, dict[str, str]] = {
    "ServiceClient": {
        "get_console_url": _CONSOLE,
        "get_telemetry": _TELEMETRY,
        "create_custom_loss": _SERVER_LOSS,
    },
    "TrainingClient": {"get_console_url": _CONSOLE, "get_telemetry": _TELEMETRY},
    "SamplingClient": {"get_telemetry": _TELEMETRY, "on_queue_state_change": _INTERNAL},
    "RestClient": {
        "get_telemetry": _TELEMETRY,
        "get_audit_log": _BILLING,
        "get_billing_usage": _BILLING,
        "get_current_checkpoint_storage_usage": _BILLING,
        "export_session_trace": "traces are the hosted service's alone",
    },
}
PARAMETER_GAPS = {"retry_config": _RETRY, "holder": _INTERNAL, "_holder": _INTERNAL}
CREATED_ELSEWHERE = {
    "TrainingClient": {"__init__"},
    "SamplingClient": {"__init__", "create"},
}
"""Made by a ServiceClient in both SDKs; how, is each one's own."""

NAME_GAPS = {
    "AdminClient": _BILLING,
    "LossHandle": _SERVER_LOSS,
    "PerDatumLossFn": _SERVER_LOSS,
    "BackcompatSamplingClientFuture": "create_... returns the client itself, which can be awaited too",
    "BackcompatTrainingClientFuture": "create_... returns the client itself, which can be awaited too",
    "ExperimentalWarning": "nothing here warns so",
    "OptimStepRequest": _INTERNAL,
    "SampleRequest": _INTERNAL,
    "RequestOptions": _INTERNAL,
    "Timeout": "ClientConfig has the timeouts",
    "auth": _INTERNAL,
    "__title__": _INTERNAL,
}


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    interpreter = os.environ.get("TINKERLITE_OFFICIAL_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    printed = subprocess.run(
        [interpreter, str(SCRIPT)],
        env=os.environ | {"TINKER_API_KEY": "tml-any"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(printed.stdout)


@pytest.mark.compat
@pytest.mark.parametrize("client", sorted(GAPS))
def test_every_method_is_here_or_missing_for_a_reason(official: dict[str, Any], client: str):
    theirs = {name for name in official["clients"][client] if name not in CREATED_ELSEWHERE.get(client, ())}
    missing = {name for name in theirs if not hasattr(getattr(tinkerlite, client), name)}
    assert {name.removesuffix("_async") for name in missing} == set(GAPS[client])


@pytest.mark.compat
@pytest.mark.parametrize("client", sorted(GAPS))
def test_every_argument_is_here_under_its_name_or_missing_for_a_reason(official: dict[str, Any], client: str):
    missing: dict[str, list[str]] = {}
    for name, parameters in official["clients"][client].items():
        ours = getattr(getattr(tinkerlite, client), name, None)
        if ours is None or name in CREATED_ELSEWHERE.get(client, ()):
            continue
        known = set(inspect.signature(ours).parameters)
        if lacking := [each for each in parameters if each not in known and each not in PARAMETER_GAPS]:
            missing[name] = lacking
    assert missing == {}


@pytest.mark.compat
def test_every_name_of_the_package_is_here_or_missing_for_a_reason(official: dict[str, Any]):
    missing = {name for name in official["names"] if not hasattr(tinkerlite, name)}
    assert missing == set(NAME_GAPS)


@pytest.mark.compat
def test_types_that_are_missing_are_requests_and_what_is_the_hosted_services_alone(official: dict[str, Any]):
    missing = {name for name in official["types"] if not hasattr(tinkerlite.types, name)}
    hosted = ("Audit", "Auth", "Billing", "Telemetry", "Event", "Usage", "CustomLoss", "Severity")
    internal = (
        "Request",
        "Internal",
        "Future",
        "Health",
        "Join",
        "Heartbeat",
        "Unload",
        "Config",
        "Create",
        "Input",
    )
    merged = ("ClientSessionFinish",)  # one class here for what are three there
    unexplained = {
        name for name in missing if not any(word in name for word in (*hosted, *internal, *merged))
    }
    assert unexplained == set()
