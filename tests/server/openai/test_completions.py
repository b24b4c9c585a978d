"""Completions on the toy engine: kinds of prompts, echo, scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.server.openai.surface import ask, complete, completion_body, streamed
from tests.server.served import Caller
from tests.server.toy_engine import TEXTS, base_table, log_softmax

FULL = log_softmax(base_table("toy"))
IDS = [0, 1, 2]
"""Says "ab c"."""


def test_an_answer_has_the_shape_that_clients_read(caller: Caller):
    answer = complete(caller, max_tokens=2)
    first = int(FULL[2].argmax())
    tokens = [first, int(FULL[first].argmax())]
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1e9
    assert answer == {
        "object": "text_completion",
        "model": "toy",
        "choices": [
            {
                "index": 0,
                "text": b"".join(TEXTS[token] for token in tokens).decode("utf-8", "replace"),
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_the_default_limit_is_the_one_that_clients_expect(caller: Caller):
    answers = [complete(caller, max_tokens=limit, n=30, temperature=3.0, seed=2) for limit in (None, 16)]
    assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize("prompt", ["ab c", ["ab c"], IDS, [IDS]])
def test_a_prompt_is_text_or_ids_alone_or_in_a_list(caller: Caller, prompt: Any):
    assert complete(caller, prompt=prompt)["choices"] == complete(caller)["choices"]


@pytest.mark.parametrize("prompts", [["ab", "d"], [[0, 1], [3]]])
def test_several_prompts_are_answered_in_their_order(caller: Caller, prompts: list[Any]):
    options = {"n": 2, "temperature": 1.0, "seed": 4}
    together = complete(caller, prompt=prompts, **options)
    alone = [complete(caller, prompt=prompt, **options) for prompt in prompts]
    texts = [choice["text"] for answer in alone for choice in answer["choices"]]
    assert [choice["text"] for choice in together["choices"]] == texts
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    totals = [answer["usage"]["total_tokens"] for answer in alone]
    assert together["usage"]["total_tokens"] == sum(totals)
    events = streamed(ask(caller, "/completions", **completion_body(prompt=prompts, stream=True, **options)))
    for index, text in enumerate(texts):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(each["text"] for each in mine) == text
        assert mine[-1]["finish_reason"] == together["choices"][index]["finish_reason"]


def test_echo_puts_the_prompt_before_its_completion(caller: Caller):
    plain, echoed = complete(caller), complete(caller, echo=True)
    assert echoed["choices"][0]["text"] == "ab c" + plain["choices"][0]["text"]
    assert echoed["usage"] == plain["usage"]
    events = streamed(ask(caller, "/completions", **completion_body(echo=True, stream=True)))
    assert events[0]["choices"][0]["text"] == "ab c"
    assert "".join(event["choices"][0]["text"] for event in events) == echoed["choices"][0]["text"]


def test_logprobs_are_parallel_lists_with_offsets_into_the_text(caller: Caller):
    [choice] = complete(caller, logprobs=2, echo=True, max_tokens=3, stop="zz")["choices"]
    scores = choice["logprobs"]
    assert scores["tokens"][:3] == ["a", "b", " c"]
    assert scores["text_offset"][:3] == [0, 1, 2]
    assert scores["text_offset"][3] == 4
    assert scores["token_logprobs"][:3] == [None, pytest.approx(FULL[0, 1]), pytest.approx(FULL[1, 2])]
    assert scores["top_logprobs"][0] is None
    best = np.argsort(-FULL[2])[:2].tolist()
    assert scores["token_logprobs"][3] == pytest.approx(FULL[2, best[0]])
    assert [*scores["top_logprobs"][3].values()] == pytest.approx(FULL[2, best].tolist())
    assert len({len(each) for each in scores.values()}) == 1


def test_alternatives_hold_the_token_itself_though_it_be_unlikely(caller: Caller):
    [choice] = complete(caller, prompt=[0, 9, 3], logprobs=1, echo=True, max_tokens=1)["choices"]
    scores = choice["logprobs"]
    worst = scores["top_logprobs"][2]
    assert set(worst) >= {"d"}
    assert worst["d"] == pytest.approx(FULL[9, 3])
    assert max(worst.values()) == pytest.approx(FULL[9].max())


def test_half_a_character_has_a_name_that_no_text_has(caller: Caller):
    [choice] = complete(caller, prompt=[0, 4, 5, 1], logprobs=0, echo=True, max_tokens=1)["choices"]
    assert choice["text"].startswith("aéb")
    assert choice["logprobs"]["tokens"][:4] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    assert choice["logprobs"]["text_offset"][:4] == [0, 1, 1, 2]


@pytest.mark.parametrize("echo", [True, False])
def test_no_tokens_at_all_only_scores_the_prompt(caller: Caller, echo: bool):
    answer = complete(caller, prompt=["ab c", "ba"], max_tokens=0, logprobs=0, echo=echo)
    assert answer["usage"]["completion_tokens"] == 0
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    assert [choice["text"] for choice in answer["choices"]] == (["ab c", "ba"] if echo else ["", ""])
    if echo:
        [_, second] = answer["choices"]
        assert second["logprobs"]["token_logprobs"] == [None, pytest.approx(FULL[1, 0])]
