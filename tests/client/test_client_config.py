"""Where the server is and who asks: arguments first, then the environment, then this machine."""

from __future__ import annotations

import pytest

from tinkerlite.config import LOCAL_API_KEY, ClientConfig, resolve_endpoint
from tinkerlite.errors import InvalidRequest


def test_without_anything_said_it_is_the_server_on_this_machine():
    endpoint = resolve_endpoint()
    assert (endpoint.base_url, endpoint.api_key) == ("http://127.0.0.1:8000", "tml-local")


def test_the_environment_is_asked_under_our_name_first_and_then_under_tinkers(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TINKER_BASE_URL", "https://theirs.example")
    monkeypatch.setenv("TINKER_API_KEY", "tml-theirs")
    theirs = resolve_endpoint()
    monkeypatch.setenv("TINKERLITE_BASE_URL", "https://ours.example/")
    monkeypatch.setenv("TINKERLITE_API_KEY", "tml-ours")
    ours = resolve_endpoint()
    assert (theirs.base_url, theirs.api_key) == ("https://theirs.example", "tml-theirs")
    assert (ours.base_url, ours.api_key) == ("https://ours.example", "tml-ours")


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKERLITE_BASE_URL", "https://ours.example")
    monkeypatch.setenv("TINKERLITE_API_KEY", "tml-ours")
    endpoint = resolve_endpoint("http://localhost:9000", "tml-mine")
    assert (endpoint.base_url, endpoint.api_key) == ("http://localhost:9000", "tml-mine")


@pytest.mark.parametrize(
    ("url", "models"),
    [
        ("local://HuggingFaceTB/SmolLM2-135M-Instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct",)),
        ("local:///models/student, /models/teacher/", ("/models/student", "/models/teacher")),
    ],
)
def test_local_names_models_which_may_be_folders(url: str, models: tuple[str, ...]):
    assert resolve_endpoint(url).local_models == models


@pytest.mark.parametrize("url", ["local://", "local:/x", "localhost:8000", "ftp://x", "http://", "qwen"])
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(InvalidRequest):
        resolve_endpoint(url)


def test_a_server_elsewhere_needs_a_key():
    with pytest.raises(InvalidRequest, match="TINKERLITE_API_KEY"):
        resolve_endpoint("https://elsewhere.example")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_a_server_on_this_machine_needs_none(host: str):
    endpoint = resolve_endpoint(f"http://{host}:8000")
    assert (endpoint.is_loopback, endpoint.api_key) == (True, "tml-local")


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_every_wait_is_longer_than_nothing(value: float):
    with pytest.raises(InvalidRequest, match="stuck_timeout_seconds"):
        ClientConfig(stuck_timeout_seconds=value)


def test_blanks_and_line_ends_around_a_key_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKERLITE_API_KEY", " tml-file\n")
    assert resolve_endpoint("https://far.example").api_key == "tml-file"
    assert resolve_endpoint("https://far.example", "tml-given\r\n").api_key == "tml-given"
    monkeypatch.setenv("TINKERLITE_API_KEY", " \n")
    assert resolve_endpoint().api_key == LOCAL_API_KEY


@pytest.mark.parametrize("key", ["tml-secret\nX: y", "tml-secret\u2026", "tml\x7fsecret"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str):
    with pytest.raises(InvalidRequest, match=r"U\+[0-9A-F]{4} at character \d+ of \d+") as caught:
        resolve_endpoint("https://far.example", key)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRequest, match="header 'X-Proxy'") as caught:
        resolve_endpoint("https://far.example", "tml-fine", {"X-Proxy": key})
    assert "secret" not in str(caught.value)
