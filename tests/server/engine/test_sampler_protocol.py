"""What every `Sampler` does, asked of each: PyTorch's, vLLM's over a stand-in, and vLLM's over vLLM itself.

The last is skipped unless TINKERLITE_VLLM_PYTHON names an interpreter that has vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.engine.sampling import (
    EXTRA_ROWS,
    VOCABULARY,
    logprobs_of,
    make_adapter,
    make_sampler,
    make_work,
    model_of,
    prompt_logprobs_of,
    reference_logits,
    reference_logprobs,
    some_tokens,
)
from tests.server.engine.vllm_samplers import stand_in_vllm, vllm_python, vllm_sampler
from tests.tiny import make_tiny_model
from tinkerlite.types import SampledSequence, SampleResponse, TensorData
from tinkerlite_server.engine.adapter_files import write_adapter
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.engine.protocols import SampledToken, Sampler, SampleResult, SampleWork
from tinkerlite_server.engine.vllm_process import VllmSettings
from tinkerlite_server.errors import BadRequest, ServerError, UnknownName

CONTEXT = 512


@dataclass(frozen=True)
class Subject:
    """A sampler, and what it samples from."""

    sampler: Sampler
    folder: Path
    adapter: Adapter
    """Loaded as "a"; "b" is another, and both are on disk in folders of these names."""
    adapters: Path
    exactness: float
    """Nats by which its logprobs may differ from transformers'."""

    def work(self, **changes: Any) -> SampleWork:
        return make_work(self.folder, changes.pop("prompt", some_tokens(9)), **changes)

    def outcomes(self, *works: SampleWork) -> dict[str, SampleResponse | ServerError]:
        for work in works:
            self.sampler.submit(work)
        return {event.key: event.outcome for event in self.events() if isinstance(event, SampleResult)}

    def events(self) -> Iterator[SampleResult | SampledToken]:
        """Whatever comes, until there is nothing left to do."""
        for _ in range(10_000):
            if not self.sampler.has_work:
                return
            yield from self.sampler.step()
        raise AssertionError("the sampler never ran out of work")

    def responses(self, *works: SampleWork) -> list[SampleResponse]:
        done = self.outcomes(*works)
        assert done.keys() == {work.key for work in works}
        found: list[SampleResponse] = []
        for work in works:
            outcome = done[work.key]
            if isinstance(outcome, ServerError):
                raise outcome
            found.append(outcome)
        return found

    def sampled(self, **changes: Any) -> SampledSequence:
        [response] = self.responses(self.work(**changes))
        return response.sequences[0]

    def close_to(self, left: Any, right: Any) -> None:
        np.testing.assert_allclose(left, right, atol=self.exactness, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads of 32: vLLM's attention on a CPU has no smaller ones."""
    return make_tiny_model(
        tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY, extra_rows=EXTRA_ROWS, heads=2, kv_heads=1
    )


@pytest.fixture(
    scope="module",
    params=["pytorch", "vllm-stand-in", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def subject(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    adapters = tmp_path_factory.mktemp("adapters")
    model = model_of(make_sampler(folder), folder)
    # Without the unembedding: some architectures of vLLM do not adapt it.
    made = {name: make_adapter(model, seed, train_unembed=False) for seed, name in enumerate("ab")}
    for name, adapter in made.items():
        (adapters / name).mkdir()
        tensors = {path: (pair.a, pair.b) for path, pair in adapter.pairs.items()}
        write_adapter(adapters / name, tensors, adapter.config, str(folder))

    def subject_of(sampler: Sampler, exactness: float) -> Subject:
        for name in made:
            sampler.load_adapter(name, str(folder), adapters / name)
        return Subject(sampler, folder, made["a"], adapters, exactness)

    if request.param == "pytorch":
        yield subject_of(make_sampler(folder), 5e-5)
    elif request.param == "vllm-stand-in":
        with vllm_sampler(folder, stand_in_vllm()) as (sampler, _, _):
            yield subject_of(sampler, 5e-5)
    else:
        with vllm_sampler(folder, nullcontext(VllmSettings(python=vllm_python()))) as (sampler, _, _):
            yield subject_of(sampler, 1e-3)


# ---- logprobs ----


def test_sampled_logprobs_equal_transformers_with_an_adapter_and_without(subject: Subject):
    prompt = some_tokens(9)
    bare, adapted = subject.responses(
        subject.work(key="bare", prompt=prompt, max_tokens=30),
        subject.work(key="adapted", prompt=prompt, max_tokens=30, adapter_id="a"),
    )
    for response, adapter in ((bare, None), (adapted, subject.adapter)):
        [sequence] = response.sequences
        expected = reference_logprobs(subject.folder, prompt, sequence.tokens, adapter)
        subject.close_to(logprobs_of(sequence), expected)


def test_logprobs_are_of_temperature_one_whatever_tokens_are_drawn_at(subject: Subject):
    prompt = some_tokens(9)
    for rule in (
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.4},
        {"temperature": 0},
    ):
        sequence = subject.sampled(prompt=prompt, **rule)
        subject.close_to(logprobs_of(sequence), reference_logprobs(subject.folder, prompt, sequence.tokens))


def test_the_likeliest_tokens_are_those_of_transformers(subject: Subject):
    prompt = some_tokens(9)
    sequence = subject.sampled(prompt=prompt, max_tokens=5, topk_sample_logprobs=4)
    ranked = reference_logits(subject.folder, [*prompt, *sequence.tokens]).log_softmax(-1)[8:13].topk(4)
    topk = sequence.topk_logprobs_np
    assert topk is not None
    assert topk.token_ids.tolist() == ranked.indices.tolist()
    subject.close_to(topk.logprobs, ranked.values)


def test_a_request_that_wants_every_token_ranked_gets_them(subject: Subject):
    everything = VOCABULARY + EXTRA_ROWS
    sequence = subject.sampled(max_tokens=2, topk_sample_logprobs=everything)
    assert sequence.topk_logprobs_np is not None
    assert sequence.topk_logprobs_np.token_ids.shape == (2, everything)
    np.testing.assert_allclose(np.exp(sequence.topk_logprobs_np.logprobs).sum(-1), 1, atol=1e-4)


# ---- draws ----


def test_a_seed_draws_the_same_again_and_the_samples_of_a_request_differ(subject: Subject):
    [first], [again] = (
        [response.sequences for response in subject.responses(subject.work(num_samples=6))] for _ in range(2)
    )
    assert [sequence.tokens for sequence in first] == [sequence.tokens for sequence in again]
    assert len({tuple(sequence.tokens) for sequence in first}) == 6
    assert subject.sampled(seed=9).tokens not in [sequence.tokens for sequence in first]


def test_greedy_takes_the_likeliest_token(subject: Subject):
    prompt = some_tokens(9)
    greedy = subject.sampled(prompt=prompt, temperature=0.0, max_tokens=20)
    table = reference_logits(subject.folder, [*prompt, *greedy.tokens])[len(prompt) - 1 : -1]
    assert greedy.tokens == table.argmax(-1).tolist()
    assert subject.sampled(prompt=prompt, top_k=1, max_tokens=20).tokens == greedy.tokens


@pytest.mark.parametrize("rule", [{"top_k": 4}, {"top_p": 0.5}, {"top_k": 8, "top_p": 0.6}])
def test_top_k_and_top_p_leave_only_the_likeliest(subject: Subject, rule: dict[str, Any]):
    prompt = some_tokens(9)
    [response] = subject.responses(subject.work(prompt=prompt, num_samples=40, max_tokens=1, **rule))
    ordered = reference_logits(subject.folder, prompt)[-1].softmax(-1).sort(descending=True)
    likeliest = ordered.values[: rule.get("top_k", len(ordered.values))]
    before = (likeliest / likeliest.sum()).cumsum(0) - likeliest / likeliest.sum()
    allowed = set(ordered.indices[: int((before < rule.get("top_p", 2)).sum())].tolist())
    drawn = {sequence.tokens[0] for sequence in response.sequences}
    assert drawn <= allowed
    assert len(drawn) > 1


def test_temperatures_that_vllm_would_change_or_refuse_are_kept(subject: Subject):
    prompt = some_tokens(9)
    greedy = subject.sampled(prompt=prompt, temperature=0.0, max_tokens=8)
    assert subject.sampled(prompt=prompt, temperature=1e-4, max_tokens=8).tokens == greedy.tokens
    # So hot that every token is about as likely: draws hardly repeat.
    [hot] = subject.responses(subject.work(temperature=1e6, num_samples=20, max_tokens=1))
    assert len({sequence.tokens[0] for sequence in hot.sequences}) > 15


# ---- ends ----


def test_a_sample_ends_with_its_stop_token_kept_or_at_its_limit(subject: Subject):
    free = subject.sampled(temperature=0.0, max_tokens=8)
    assert (len(free.tokens), free.stop_reason) == (8, "length")
    stop = free.tokens[4]
    stopped = subject.sampled(temperature=0.0, max_tokens=8, stop_ids=frozenset({stop, 500}))
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert stopped.stop_reason == "stop"


def test_a_stop_string_ends_a_sample_with_the_token_that_completes_it(subject: Subject):
    tokenizer = ModelTokenizer(subject.folder)
    free = subject.sampled(seed=3, max_tokens=30)
    pieces = [tokenizer.text([token]) for token in free.tokens]
    place = next(i for i in range(5, 29) if len(pieces[i]) > 1 and "\ufffd" not in pieces[i] + pieces[i + 1])
    string = pieces[place][-1] + pieces[place + 1][0]
    expected = next(i for i in range(30) if string in tokenizer.text(free.tokens[: i + 1])) + 1
    crowd = [
        subject.work(key=str(i), seed=3, max_tokens=30, stop_strings=strings)
        for i, strings in enumerate([(string,), ("never said",)])
    ]
    stopped, unstopped = (response.sequences[0] for response in subject.responses(*crowd))
    assert stopped.tokens == free.tokens[:expected]
    assert stopped.stop_reason == "stop"
    assert (unstopped.tokens, unstopped.stop_reason) == (free.tokens, "length")


def test_a_sample_may_fill_the_context(subject: Subject):
    prompt = some_tokens(CONTEXT - 4)
    assert len(subject.sampled(prompt=prompt, max_tokens=4).tokens) == 4
    assert len(subject.sampled(prompt=some_tokens(CONTEXT), max_tokens=1).tokens) == 1


# ---- prompts ----


def test_what_is_asked_about_a_prompt_is_answered_beside_the_completions(subject: Subject):
    prompt = some_tokens(12)
    plain = subject.work(prompt=prompt, num_samples=3, max_tokens=10, adapter_id="a")
    asking = replace(
        plain,
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
        target_prompt_logprobs=TensorData(np.arange(22).reshape(11, 2)),
        prompt_alt_tokens_k=2,
    )
    [bare] = subject.responses(plain)
    [response] = subject.responses(asking)
    assert [s.tokens for s in response.sequences] == [s.tokens for s in bare.sequences]
    table = reference_logits(subject.folder, prompt, subject.adapter).log_softmax(-1)
    places = np.arange(11)
    subject.close_to(prompt_logprobs_of(response)[1:], table[places, prompt[1:]])
    assert response.topk_prompt_logprobs_np is not None
    assert response.topk_prompt_logprobs_np.token_ids[1:].tolist() == table[:11].topk(3).indices.tolist()
    assert response.target_prompt_logprobs is not None
    targets = np.arange(22).reshape(11, 2)
    subject.close_to(response.target_prompt_logprobs.to_numpy(), table[places[:, None], targets])
    assert response.prompt_alt_tokens is not None
    alternatives = response.prompt_alt_tokens
    subject.close_to(alternatives.logprobs.to_numpy(), table[places[:, None], alternatives.tokens.to_numpy()])


def test_scoring_answers_for_every_token_but_the_first(subject: Subject):
    tokens = some_tokens(40)
    works = [
        subject.work(key=str(i), prompt=tokens[: 40 - i], max_tokens=1, prompt_logprobs=True)
        for i in range(8)
    ]
    expected = reference_logprobs(subject.folder, tokens[:1], tokens[1:])
    for i, response in enumerate(subject.responses(*works)):
        subject.close_to(prompt_logprobs_of(response)[1:], expected[: 39 - i])


# ---- life ----


def test_a_crowd_gets_what_each_would_get_alone(subject: Subject):
    works = [
        subject.work(
            key=str(i),
            prompt=some_tokens(3 + 7 * i, seed=i),
            max_tokens=3 + 5 * (i % 4),
            num_samples=1 + i % 3,
            seed=i,
            adapter_id=[None, "a", "b"][i % 3],
            temperature=[1.0, 0.7][i % 2],
        )
        for i in range(10)
    ]
    together = subject.responses(*works)
    for work, crowded in zip(works, together, strict=True):
        [alone] = subject.responses(work)
        assert [s.tokens for s in alone.sequences] == [s.tokens for s in crowded.sequences]
        for one, other in zip(alone.sequences, crowded.sequences, strict=True):
            subject.close_to(logprobs_of(one), logprobs_of(other))


def test_a_stream_reports_every_token_before_the_response(subject: Subject):
    quiet = subject.work(key="quiet", seed=1)
    loud = subject.work(key="loud", num_samples=2, topk_sample_logprobs=2, stream=True)
    for work in (quiet, loud):
        subject.sampler.submit(work)
    events = list(subject.events())
    done = {event.key: event.outcome for event in events if isinstance(event, SampleResult)}
    assert done.keys() == {"quiet", "loud"}
    response = done["loud"]
    assert isinstance(response, SampleResponse)
    told = [event for event in events if isinstance(event, SampledToken)]
    assert {event.key for event in told} == {"loud"}
    last = next(
        i for i, event in enumerate(events) if isinstance(event, SampleResult) and event.key == "loud"
    )
    assert all(isinstance(event, SampleResult) for event in events[last:])
    for index, sequence in enumerate(response.sequences):
        mine = [event for event in told if event.index == index]
        assert [event.token for event in mine] == sequence.tokens
        assert [np.float32(event.logprob) for event in mine] == logprobs_of(sequence).tolist()
        assert [event.stop_reason for event in mine] == [None] * (len(mine) - 1) + [sequence.stop_reason]
        topk = sequence.topk_logprobs_np
        assert topk is not None
        assert [[token for token, _ in event.topk] for event in mine] == topk.token_ids.tolist()


def test_cancelled_work_yields_nothing_and_its_neighbours_go_on(subject: Subject):
    works = [
        subject.work(key=str(i), seed=i, max_tokens=200, num_samples=2, prompt_logprobs=i == 1)
        for i in range(3)
    ]
    [expected] = subject.responses(works[2])
    for work in works:
        subject.sampler.submit(work)
    subject.sampler.step()
    subject.sampler.cancel("0")
    subject.sampler.step()
    subject.sampler.cancel("1")
    subject.sampler.cancel("never heard of")
    events = list(subject.events())
    assert [event.key for event in events] == ["2"]
    [outcome] = [event.outcome for event in events if isinstance(event, SampleResult)]
    assert isinstance(outcome, SampleResponse)
    assert [s.tokens for s in outcome.sequences] == [s.tokens for s in expected.sequences]


def test_weights_that_are_not_there_are_named_and_others_go_on(subject: Subject):
    done = subject.outcomes(subject.work(key="bad", adapter_id="lost"), subject.work(key="good"))
    assert isinstance(done["bad"], UnknownName)
    assert "lost" in str(done["bad"])
    assert isinstance(done["good"], SampleResponse)


def test_a_folder_that_is_no_adapter_is_refused(subject: Subject, tmp_path: Path):
    with pytest.raises(BadRequest, match="adapter_config"):
        subject.sampler.load_adapter("empty", str(subject.folder), tmp_path)
    assert not subject.sampler.has_adapter("empty")


def test_a_dropped_adapter_serves_what_was_submitted_and_nothing_after(subject: Subject):
    sampler = subject.sampler
    sampler.load_adapter("once", str(subject.folder), subject.adapters / "a")
    assert sampler.has_adapter("once")
    work = subject.work(key="before", adapter_id="once", max_tokens=40)
    sampler.submit(work)
    sampler.step()
    sampler.drop_adapter("once")
    sampler.drop_adapter("never heard of")
    assert not sampler.has_adapter("once")
    done = subject.outcomes(subject.work(key="after", adapter_id="once"))
    assert isinstance(done["after"], UnknownName)
    before = done["before"]
    assert isinstance(before, SampleResponse)
    [expected] = subject.responses(replace(work, adapter_id="a"))
    assert before.sequences[0].tokens == expected.sequences[0].tokens


def test_a_name_that_is_given_anew_means_the_new_weights(subject: Subject):
    sampler = subject.sampler
    of_a, of_b = (
        response.sequences[0].tokens
        for response in subject.responses(*[subject.work(key=n, adapter_id=n, max_tokens=30) for n in "ab"])
    )
    assert of_a != of_b
    for name, expected in (("a", of_a), ("b", of_b)):
        sampler.load_adapter("same", str(subject.folder), subject.adapters / name)
        assert subject.sampled(adapter_id="same", max_tokens=30).tokens == expected
    sampler.drop_adapter("same")
