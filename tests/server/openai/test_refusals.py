"""What is refused: by name, with its value, in the shape that clients of this surface read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.openai.surface import PacedEngine, ask, chat, chat_body, completion_body
from tests.server.served import Caller, serving
from tests.server.toy_engine import MAX_CONTEXT, VOCAB, ToyEngine
from tinkerlite_server.errors import BadRequest, EngineFailure
from tinkerlite_server.settings import Limits

ERROR = {"message", "type", "param", "code"}


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert int(response.headers["content-length"]) == len(response.content)
    error = response.json()["error"]
    assert set(error) == ERROR
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("repetition_penalty", 1.1),
        ("logit_bias", {"5": 10}),
        ("best_of", 3),
        ("suffix", "end"),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("min_p", 0.1),
        ("web_search_options", {"user_location": "here"}),
        ("no_such_parameter", 1),
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_what_is_not_supported_is_refused_by_name(
    lasting_caller: Caller, path: str, name: str, value: object
):
    body = chat_body() if path == "/chat/completions" else completion_body()
    error = refused(ask(lasting_caller, path, **body, **{name: value}))
    assert error["param"] == name
    assert name in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_asks_for_nothing_passes(lasting_caller: Caller):
    chat(
        lasting_caller,
        tools=[],
        functions=None,
        tool_choice="auto",
        response_format={"type": "text"},
        frequency_penalty=0.0,
        presence_penalty=0,
        repetition_penalty=1.0,
        logit_bias={},
        best_of=1,
        suffix="",
        modalities=["text"],
        store=False,
        user="someone",
        metadata={"a": "b"},
        parallel_tool_calls=True,
        service_tier="auto",
        seed=None,
        stop=None,
        n=None,
        top_p=None,
    )


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temperature": -1}, "temperature", "-1"),
        ({"temperature": "hot"}, "temperature", "hot"),
        ({"top_p": 0}, "top_p", "0"),
        ({"top_p": 1.5}, "top_p", "1.5"),
        ({"n": 0}, "n", "n is 0"),
        ({"n": 1025}, "n", "1024"),
        ({"max_tokens": -1}, "max_tokens", "-1"),
        ({"seed": "lucky"}, "seed", "lucky"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"stop": ["x"] * 65}, "stop", "64"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"model": 5}, "model", "5"),
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_values_out_of_range_are_named(
    lasting_caller: Caller, path: str, fields: dict[str, Any], param: str, said: str
):
    body = chat_body() if path == "/chat/completions" else completion_body()
    error = refused(ask(lasting_caller, path, **{**body, **fields}))
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ([{"role": "wizard", "content": "a"}], "wizard"),
        ([{"role": "tool", "content": "a", "tool_call_id": "1"}], "tool"),
        ([{"role": "user"}], "content is absent"),
        ([{"role": "user", "content": 5}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text"),
        ([{"role": "user", "content": "a", "tool_calls": [{"id": "1"}]}], "tool_calls"),
        ([{"role": "assistant", "content": "a"}], "does not begin with the assistant"),
    ],
)
def test_conversations_that_cannot_be_read_are_refused(
    lasting_caller: Caller, messages: list[Any], said: str
):
    error = refused(ask(lasting_caller, "/chat/completions", **chat_body(messages=messages)))
    assert said in error["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"logprobs": 1001}, "1000"),
        ({"logprobs": -1}, "-1"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [[]]}, "prompt is empty"),
        ({"prompt": ["ab", ""]}, "prompt is empty"),
        ({"prompt": [VOCAB]}, f"token id {VOCAB}"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": "a" * (MAX_CONTEXT + 1)}, f"{MAX_CONTEXT + 1} tokens"),
        ({"prompt": ["a"] * 1025}, "1024"),
        ({"stream": True, "max_tokens": 0}, "nothing to stream"),
        ({"stream": True, "echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(lasting_caller: Caller, fields: dict[str, Any], said: str):
    error = refused(ask(lasting_caller, "/completions", **completion_body(**fields)))
    assert said in error["message"]


def test_chat_logprobs_are_a_switch_and_a_number(lasting_caller: Caller):
    error = refused(ask(lasting_caller, "/chat/completions", **chat_body(top_logprobs=2)))
    assert error["param"] == "top_logprobs"
    too_many = chat_body(logprobs=True, top_logprobs=1001)
    assert "1000" in refused(ask(lasting_caller, "/chat/completions", **too_many))["message"]


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_models_that_are_not_here_are_not_found(lasting_caller: Caller, path: str, stream: bool):
    body = chat_body() if path == "/chat/completions" else completion_body()
    for model in ("gpt-4", "tinker://sess-1:train:0/sampler_weights/a", "toy;tinker://x/sampler_weights/a"):
        error = refused(ask(lasting_caller, path, **body | {"model": model, "stream": stream}), 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"


def test_bodies_and_paths_that_are_none_get_errors_of_the_same_shape(lasting_caller: Caller):
    url = "http://server/oai/api/v1"
    request = lasting_caller.request
    assert "not JSON" in refused(request("POST", f"{url}/completions", content="{", headers=JSON))["message"]
    refused(request("POST", f"{url}/completions", content="{}"), 415)
    refused(request("POST", f"{url}/embeddings", json={}), 404)
    refused(request("GET", f"{url}/chat/completions"), 405)


JSON = {"Content-Type": "application/json"}


def test_a_key_that_is_not_known_is_refused_and_a_bearer_is_let_in(tmp_path: Path):
    with serving(ToyEngine(), tmp_path, api_keys=["tml-a"]) as server:
        for key in (None, "tml-b"):
            error = refused(ask(server.caller(key), "/completions", **completion_body()), 401)
            assert error["code"] == "invalid_api_key"
        bearer = {"Authorization": "Bearer tml-a"}
        models = server.caller(None).request("GET", "http://server/oai/api/v1/models", headers=bearer)
        assert models.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_said_and_nothing_of_the_request_stays_in_it(tmp_path: Path, stream: bool):
    engine = PacedEngine()
    with serving(engine, tmp_path, limits=Limits(max_queued_samples=3)) as server:
        body = completion_body(prompt=["a", "b"], n=2, stream=stream)
        response = ask(server.caller(), "/completions", **body)
        assert refused(response, 429)["code"] == "rate_limit_exceeded"
        assert "retry-after" in response.headers
        engine.freely = True
        assert ask(server.caller(), "/completions", **completion_body(n=3)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (BadRequest("it does not fit"), 400, "invalid_request_error"),
        (EngineFailure("out of memory"), 500, "server_error"),
        (RuntimeError("a defect"), 500, "server_error"),
    ],
)
def test_what_fails_before_there_is_a_token_is_answered_with_its_status(
    toy: ToyEngine, caller: Caller, stream: bool, failure: Exception, status: int, kind: str
):
    toy.failures["submit"] = failure
    error = refused(ask(caller, "/chat/completions", **chat_body(stream=stream)), status)
    assert error["type"] == kind
    assert str(failure) in error["message"]
