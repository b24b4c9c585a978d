"""Chat completions on the toy engine, whose tokens and texts can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.server.openai.surface import HELLO, ask, chat, chat_body, streamed
from tests.server.served import Caller
from tests.server.toy_engine import END_OF_TEXT, TEXTS, ToyTokenizer, base_table, log_softmax

PROMPT = ToyTokenizer().encode_chat([{"role": "user", "content": "ab c"}])


def greedy(count: int, last: int = PROMPT[-1]) -> list[int]:
    tokens = []
    for _ in range(count):
        last = int(base_table("toy")[last].argmax())
        tokens.append(last)
        if last == END_OF_TEXT:
            break
    return tokens


def text_of(tokens: list[int]) -> str:
    return b"".join(TEXTS[token] for token in tokens if token != END_OF_TEXT).decode("utf-8", "replace")


def test_an_answer_has_the_shape_that_clients_read(caller: Caller):
    answer = chat(caller)
    tokens = greedy(6)
    [choice] = answer.pop("choices")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": text_of(tokens), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop" if tokens[-1] == END_OF_TEXT else "length",
    }
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1e9
    assert answer == {
        "object": "chat.completion",
        "model": "toy",
        "usage": {
            "prompt_tokens": len(PROMPT),
            "completion_tokens": len(tokens),
            "total_tokens": len(PROMPT) + len(tokens),
        },
    }


def test_the_same_tokens_come_as_from_asample_with_the_same_seed(caller: Caller):
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 6, "seed": 7, "max_tokens": 9}
    answer = chat(caller, n=3, logprobs=True, **options)
    prompt = {"chunks": [{"tokens": PROMPT}]}
    response = caller.sample(caller.sampler(), num_samples=3, prompt=prompt, sampling_params=options)
    for choice, sequence in zip(answer["choices"], response.sequences, strict=True):
        shown = [token for token in sequence.tokens if token != END_OF_TEXT]
        assert choice["message"]["content"] == text_of(shown)
        entries = choice["logprobs"]["content"]
        assert [bytes(entry["bytes"]) for entry in entries] == [TEXTS[token] for token in shown]
        assert sequence.logprobs is not None
        assert [entry["logprob"] for entry in entries] == sequence.logprobs[: len(shown)]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3


def test_logprobs_name_each_token_and_its_likeliest_alternatives(caller: Caller):
    [choice] = chat(caller, logprobs=True, top_logprobs=3, max_tokens=1)["choices"]
    [entry] = choice["logprobs"]["content"]
    row = log_softmax(base_table("toy"))[PROMPT[-1]]
    best = np.argsort(-row)[:3].tolist()
    assert entry["bytes"] == list(TEXTS[best[0]])
    assert [each["bytes"] for each in entry["top_logprobs"]] == [list(TEXTS[token]) for token in best]
    assert [each["logprob"] for each in entry["top_logprobs"]] == pytest.approx(row[best].tolist())


def test_a_token_that_is_half_a_character_is_spelled_in_hexadecimal(caller: Caller):
    [choice] = chat(caller, logprobs=True, top_logprobs=11, max_tokens=1)["choices"]
    [entry] = choice["logprobs"]["content"]
    spelled = {each["token"]: each["bytes"] for each in entry["top_logprobs"]}
    assert spelled["\\xc3"] == [0xC3]
    assert spelled["\\xa9"] == [0xA9]
    assert spelled["<end>"] == list(b"<end>")


@pytest.mark.parametrize("stop", ["x", ["x", "gh"], []])
def test_stop_strings_come_on_top_of_the_end_of_the_turn(caller: Caller, stop: str | list[str]):
    answers = [chat(caller, n=40, temperature=2.0, seed=3, max_tokens=15, stop=each) for each in (None, stop)]
    ended = [[choice["finish_reason"] for choice in answer["choices"]] for answer in answers]
    assert {"stop", "length"} == {*ended[0]}
    assert ended[1].count("stop") >= ended[0].count("stop")
    for choice in answers[1]["choices"]:
        assert "<end>" not in choice["message"]["content"]
        assert not any(each in choice["message"]["content"] for each in stop)


def test_contents_in_parts_are_put_together_and_developers_are_systems(caller: Caller):
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": " c"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "name": "me", "content": parts}]
    plain = [{"role": "system", "content": "d"}, {"role": "user", "content": "ab c"}]
    answers = [chat(caller, messages=each) for each in (messages, plain)]
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_an_answer_can_be_sent_back_as_it_came(caller: Caller):
    [choice] = chat(caller, max_tokens=1)["choices"]
    said = choice["message"] | {"annotations": [], "audio": None, "tool_calls": None, "function_call": None}
    again = {"role": "user", "content": "d"}
    assert chat(caller, messages=[*HELLO, said, again])["usage"]["prompt_tokens"] > len(PROMPT)


def test_the_newer_name_of_max_tokens_means_the_same(caller: Caller):
    limits = {"max_tokens": None, "max_completion_tokens": 2}
    assert chat(caller, **limits)["usage"]["completion_tokens"] == 2
    assert chat(caller, max_tokens=2, max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    error = ask(caller, "/chat/completions", **chat_body(max_tokens=2, max_completion_tokens=3))
    assert error.status_code == 400
    assert error.json()["error"]["param"] == "max_completion_tokens"


def test_without_a_limit_a_completion_may_fill_the_context(caller: Caller):
    answer = chat(caller, max_tokens=None, n=30, temperature=2.0, seed=1)
    assert max(choice["finish_reason"] for choice in answer["choices"]) == "stop"
    assert answer["usage"]["completion_tokens"] > 6 * 30


# ---- streams ----


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_put_together_is_the_answer_in_one_piece(caller: Caller, logprobs: bool):
    fields = {"n": 12, "temperature": 2.0, "seed": 5, "max_tokens": 15, "stop": ["gh", "e\nd"]}
    if logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2}
    whole = chat(caller, **fields)
    events = streamed(
        ask(
            caller,
            "/chat/completions",
            **chat_body(stream=True, stream_options={"include_usage": True}, **fields),
        )
    )
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    usage = events.pop()
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events)
    for index, choice in enumerate(whole["choices"]):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in mine) == choice["message"]["content"]
        assert [each["finish_reason"] for each in mine[:-1]] == [None] * (len(mine) - 1)
        assert (mine[-1]["delta"], mine[-1]["finish_reason"]) == ({}, choice["finish_reason"])
        scored = [entry for each in mine if each["logprobs"] for entry in each["logprobs"]["content"]]
        assert scored == (choice["logprobs"]["content"] if logprobs else [])


def test_usage_is_streamed_only_when_asked_for(caller: Caller):
    events = streamed(ask(caller, "/chat/completions", **chat_body(stream=True)))
    assert all("usage" not in event and event["choices"] for event in events)


def test_others_sample_as_before_and_nothing_is_kept_of_what_was_answered(caller: Caller):
    before = dict(caller.server.service.futures._entries)
    chat(caller)
    streamed(ask(caller, "/chat/completions", **chat_body(stream=True)))
    assert caller.server.service.futures._entries == before
    assert caller.sample(caller.sampler()).sequences[0].tokens
