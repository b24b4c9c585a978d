"""The official `openai` package on the server, over real HTTP, beside our own client on the same server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import tinkerlite
from tests.server.server_process import server_process
from tests.tiny import IM_END, make_tiny_model
from tinkerlite.types import AdamParams, Datum, ModelInput, SampledSequence, SamplingParams
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer

MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Naïve? 🎉"}]


@dataclass(frozen=True, kw_only=True)
class Running:
    url: str
    model: str
    tokenizer: ModelTokenizer
    ours: tinkerlite.ServiceClient

    def openai(self, key: str = "tml-mine", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/oai/api/v1", api_key=key, max_retries=0, timeout=60, **options)

    def sampled(self, prompt: list[int], model_path: str | None = None, **params: Any) -> SampledSequence:
        """What our own client gets."""
        sampler = self.ours.create_sampling_client(
            **({"model_path": model_path} if model_path else {"base_model": self.model})
        )
        return sampler.sample(ModelInput.from_ints(prompt), 1, SamplingParams(**params)).result().sequences[0]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = make_tiny_model(tmp_path_factory.mktemp("openai") / "tiny")
    data = tmp_path_factory.mktemp("data")
    with (
        server_process(
            "--model", str(folder), "--port", "0", "--data-dir", str(data), "--dtype", "float32"
        ) as (_, url),
        tinkerlite.ServiceClient(base_url=url, api_key="tml-mine") as ours,
    ):
        yield Running(url=url, model=str(folder), tokenizer=ModelTokenizer(folder), ours=ours)


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[OpenAI]:
    with running.openai() as client:
        yield client


@pytest.fixture(scope="module")
def trained(running: Running) -> str:
    """The path of sampler weights."""
    trainer = running.ours.create_lora_training_client(running.model, rank=4, seed=0)
    tokens = running.tokenizer.encode("the capital of France is Paris")
    datum = Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    trainer.forward_backward([datum], "cross_entropy")
    trainer.optim_step(AdamParams(learning_rate=0.05)).result()
    return trainer.save_weights_for_sampler("openai").result().path


def test_a_greedy_chat_is_what_our_own_client_samples_token_by_token(running: Running, client: OpenAI):
    prompt = running.tokenizer.encode_chat(MESSAGES)
    expected = running.sampled(prompt, max_tokens=24, temperature=0.0)
    answer = client.chat.completions.create(
        model=running.model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=2,
    )
    [choice] = answer.choices
    shown = [token for token in expected.tokens if token != IM_END]
    assert choice.message.content == running.tokenizer.text(shown)
    assert choice.finish_reason == expected.stop_reason
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    entries = choice.logprobs.content
    assert [bytes(entry.bytes or []) for entry in entries] == [
        running.tokenizer.token_bytes(token) for token in shown
    ]
    assert expected.logprobs is not None
    assert [entry.logprob for entry in entries] == pytest.approx(expected.logprobs[: len(shown)], abs=1e-5)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected.tokens)


@pytest.mark.parametrize("stop", [None, ["e", "🎉", "\n\n"]])
def test_a_streamed_chat_is_the_whole_one_in_pieces(running: Running, client: OpenAI, stop: Any):
    options: Any = {
        "model": running.model,
        "messages": MESSAGES,
        "max_completion_tokens": 60,
        "temperature": 1.3,
        "top_p": 0.95,
        "seed": 11,
        "n": 4,
        "stop": stop,
    }
    whole = client.chat.completions.create(**options)
    texts, reasons = ["", "", "", ""], [None] * 4
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert len(chunks) > 10
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    for text in texts:
        assert "<|im_end|>" not in text
        assert not any(each in text for each in stop or [])


def test_asynchronous_streams_run_side_by_side(running: Running, client: OpenAI):
    async def text(client: AsyncOpenAI, seed: int) -> str:
        stream = await client.completions.create(
            model=running.model, prompt="the capital", max_tokens=30, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def several() -> list[str]:
        async with AsyncOpenAI(
            base_url=f"{running.url}/oai/api/v1", api_key="tml-mine", max_retries=0
        ) as client:
            return await asyncio.gather(*(text(client, seed) for seed in range(6)))

    texts = asyncio.run(several())
    alone = [
        client.completions.create(model=running.model, prompt="the capital", max_tokens=30, seed=seed)
        for seed in range(6)
    ]
    assert texts == [answer.choices[0].text for answer in alone]
    assert len(set(texts)) == 6


def test_saved_weights_answer_under_their_path_to_their_owner_alone(
    running: Running, client: OpenAI, trained: str
):
    ids = [model.id for model in client.models.list()]
    assert ids == [running.model, trained]
    assert client.models.retrieve(trained).id == trained
    assert client.models.retrieve(running.model).id == running.model
    prompt = running.tokenizer.encode("the capital")
    expected = running.sampled(prompt, trained, max_tokens=12, temperature=0.0)
    base = running.sampled(prompt, max_tokens=12, temperature=0.0)
    assert expected.tokens != base.tokens
    for model in (trained, f"{running.model};{trained}"):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
        shown = [token for token in expected.tokens if token != IM_END]
        assert answer.choices[0].text == running.tokenizer.text(shown)
    with running.openai("tml-other") as other:
        assert [model.id for model in other.models.list()] == [running.model]
        with pytest.raises(openai.NotFoundError, match=trained) as caught:
            other.completions.create(model=trained, prompt="the capital")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            other.models.retrieve(trained)


def test_scoring_through_echo_is_scoring_by_our_own_client(running: Running, client: OpenAI):
    ids = running.tokenizer.encode("What is the capital of France? It is Paris. 🎉")
    answer = client.completions.create(
        model=running.model, prompt=[ids, ids[:5]], max_tokens=0, echo=True, logprobs=3
    )
    sampler = running.ours.create_sampling_client(base_model=running.model)
    for choice, tokens in zip(answer.choices, (ids, ids[:5]), strict=True):
        scores = choice.logprobs
        assert scores is not None
        assert choice.text == running.tokenizer.text(tokens)
        expected = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
        assert scores.token_logprobs is not None
        assert scores.token_logprobs[0] is expected[0] is None
        assert scores.token_logprobs[1:] == pytest.approx(expected[1:], abs=1e-5)
        assert scores.tokens is not None
        assert scores.text_offset is not None
        places = zip(scores.tokens, scores.text_offset, strict=True)
        assert all(choice.text.startswith(token, at) for token, at in places if "bytes:" not in token)


def test_errors_are_the_packages_own(running: Running, client: OpenAI):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        create(model=running.model, messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature"
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        create(model=running.model, messages=MESSAGES, tools=tools)
    picture: Any = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        create(model=running.model, messages=[{"role": "user", "content": [picture]}])
    with pytest.raises(openai.BadRequestError, match="context"):
        create(model=running.model, messages=[{"role": "user", "content": "x" * 2000}], stream=True)


def test_what_an_answer_holds_is_json_that_others_read_too(running: Running, client: OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        model=running.model, messages=MESSAGES, max_tokens=3
    )
    assert json.loads(raw.text)["object"] == "chat.completion"
    assert raw.headers["content-type"] == "application/json"
