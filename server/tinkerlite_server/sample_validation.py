"""Everything a sample request can get wrong, checked before it is accepted.

In: a prompt and its options. Out: the engine's `SampleWork`, one seed a sample.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import blake2b

from tinkerlite.types import ModelInput, SamplingParams
from tinkerlite_server.engine.protocols import ModelInfo, SampleWork
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.settings import Limits
from tinkerlite_server.validation import text_tokens


@dataclass(frozen=True, kw_only=True)
class SampleQuestion:
    """What a sample request asks, before it is known whether it can be asked."""

    prompt: ModelInput
    params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None


def sample_work(
    question: SampleQuestion, info: ModelInfo, limits: Limits, *, key: str, adapter_id: str | None
) -> SampleWork:
    """The engine's work.

    Raises:
        BadRequest: naming the field that is wrong.
    """
    params = question.params
    prompt = text_tokens(question.prompt, info, "prompt")
    if not 1 <= question.num_samples <= limits.max_samples:
        raise BadRequest(f"num_samples is {question.num_samples}; it must be 1 to {limits.max_samples}")
    max_tokens = _max_tokens(params.max_tokens, len(prompt), info)
    _check_topk(question, len(prompt), max_tokens, info, limits)
    last_n = question.prompt_logprobs_last_n
    if last_n is not None and not (question.prompt_logprobs and 1 <= last_n <= len(prompt) - 1):
        raise BadRequest(
            f"prompt_logprobs_last_n is {last_n}; it needs prompt_logprobs, "
            f"and must be 1 to {len(prompt) - 1}"
        )
    stop_ids, stop_strings = _stops(params, info)
    return SampleWork(
        key=key,
        base_model=info.name,
        adapter_id=adapter_id,
        prompt=prompt,
        num_samples=question.num_samples,
        max_tokens=max_tokens,
        seeds=sample_seeds(params.seed, question.num_samples),
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        prompt_logprobs=question.prompt_logprobs,
        topk_prompt_logprobs=question.topk_prompt_logprobs,
        topk_sample_logprobs=question.topk_sample_logprobs,
    )


def _max_tokens(asked: int | None, prompt_length: int, info: ModelInfo) -> int:
    """What was asked for, cut to what the context still holds.

    One token more is always to be had: it is drawn from the full context, and never read.
    """
    room = max(info.max_context - prompt_length, 1)
    if asked is not None and asked > 1 and prompt_length == info.max_context:
        raise BadRequest(
            f"prompt has {prompt_length} tokens, which fills the context of {info.name}; "
            "no more than one token can be sampled after it"
        )
    return room if asked is None else min(asked, room)


def _check_topk(
    question: SampleQuestion, prompt_length: int, max_tokens: int, info: ModelInfo, limits: Limits
) -> None:
    most = min(limits.max_topk, info.vocab_size)
    asked = {
        "topk_prompt_logprobs": question.topk_prompt_logprobs,
        "topk_sample_logprobs": question.topk_sample_logprobs,
    }
    for name, k in asked.items():
        if not 0 <= k <= most:
            raise BadRequest(f"{name} is {k}; it must be 0 to {most}")
    values = prompt_length * question.topk_prompt_logprobs
    values += question.num_samples * max_tokens * question.topk_sample_logprobs
    if values > limits.max_topk_values:
        raise BadRequest(
            f"the top-k logprobs asked for may come to {values} pairs, and one answer holds "
            f"{limits.max_topk_values}; ask for fewer alternatives, samples or tokens at once"
        )


def _stops(params: SamplingParams, info: ModelInfo) -> tuple[frozenset[int], tuple[str, ...]]:
    """Stop ids and strings.

    Ids replace the model's end of text, so that an empty list stops nothing; strings come on
    top of it, since they cannot name it.
    """
    stop = params.stop
    if stop is None:
        return frozenset(info.eos_ids), ()
    if isinstance(stop, str):
        stop = [stop]
    strings = [each for each in stop if isinstance(each, str)]
    ids = [each for each in stop if not isinstance(each, str)]
    if "" in strings:
        raise BadRequest("sampling_params.stop has an empty string, which every text contains")
    for each in ids:
        if not 0 <= each < info.vocab_size:
            raise BadRequest(
                f"sampling_params.stop has token id {each}; {info.name} has ids 0 to {info.vocab_size - 1}"
            )
    return frozenset([*ids, *info.eos_ids] if strings else ids), tuple(strings)


def sample_seeds(seed: int | None, num_samples: int) -> tuple[int, ...]:
    """One seed a sample: the i-th is a digest of the request's seed and i, or fresh without one."""
    if seed is None:
        return tuple(secrets.randbits(63) for _ in range(num_samples))
    return tuple(
        int.from_bytes(blake2b(f"{seed}:{i}".encode(), digest_size=8).digest()) >> 1
        for i in range(num_samples)
    )
