"""Everything a sample request can get wrong, checked before it is accepted.

In: a prompt and its options. Out: the engine's `SampleWork`, one seed a sample.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from tinkerlite.types import ModelInput, SamplingParams, TensorData
from tinkerlite_server.engine.protocols import ModelInfo, SampleWork
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.settings import Limits
from tinkerlite_server.validation import text_tokens

MOST_STOPS = 64
MOST_STOP_CHARACTERS = 8192
"""In all of a request's stop strings, each of which every new token is compared with."""

SAMPLE_FEATURES = (
    "topk_sample_logprobs",
    "prompt_logprobs",
    "topk_prompt_logprobs",
    "prompt_logprobs_last_n",
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
)
"""Fields by which a request asks for more than completions; clients can find out which there are."""


@dataclass(frozen=True, kw_only=True)
class SampleQuestion:
    """What a sample request asks, before it is known whether it can be asked."""

    prompt: ModelInput
    params: SamplingParams
    num_samples: int = 1
    topk_sample_logprobs: int = 0
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    stream: bool = False


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
    _check_last_n(question, len(prompt))
    _check_targets(question.target_prompt_logprobs, len(prompt), info)
    _check_counts(question, len(prompt), max_tokens, info, limits)
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
        topk_sample_logprobs=question.topk_sample_logprobs,
        prompt_logprobs=question.prompt_logprobs,
        topk_prompt_logprobs=question.topk_prompt_logprobs,
        prompt_logprobs_last_n=question.prompt_logprobs_last_n,
        target_prompt_logprobs=question.target_prompt_logprobs,
        prompt_alt_tokens_k=question.prompt_alt_tokens_k,
        prompt_seed=prompt_seed(params.seed),
        stream=question.stream,
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


def _check_last_n(question: SampleQuestion, prompt_length: int) -> None:
    last_n = question.prompt_logprobs_last_n
    if last_n is None:
        return
    if not question.prompt_logprobs:
        raise BadRequest(f"prompt_logprobs_last_n is {last_n}; it needs prompt_logprobs, which is off")
    if not 1 <= last_n <= prompt_length - 1:
        raise BadRequest(
            f"prompt_logprobs_last_n is {last_n}, and the prompt has {prompt_length} tokens, of which the "
            f"first has no logprob; it must be 1 to {prompt_length - 1}"
        )


def _check_targets(targets: TensorData | None, prompt_length: int, info: ModelInfo) -> None:
    """Ids by position: right in dtype and shape, each in the vocabulary or -1, and not all -1."""
    if targets is None:
        return
    field, shape = "target_prompt_logprobs", targets.shape
    if targets.dtype != "int64":
        raise BadRequest(f"{field} is {targets.dtype}; token ids are int64")
    if len(shape) != 2 or shape[0] != prompt_length - 1:
        raise BadRequest(
            f"{field} has shape {tuple(shape)}; it must be ({prompt_length - 1}, K): a row for each prompt "
            "token after the first"
        )
    if shape[1] > info.vocab_size:
        raise BadRequest(f"{field} has {shape[1]} ids a row, and there are {info.vocab_size} tokens")
    ids = targets.values.reshape(-1)
    outside = (ids < -1) | (ids >= info.vocab_size)
    if outside.any():
        raise BadRequest(
            f"{field} has token id {int(ids[np.argmax(outside)])}; {info.name} has ids "
            f"0 to {info.vocab_size - 1}, and -1 asks for nothing"
        )
    if not (ids >= 0).any():
        raise BadRequest(f"{field} names no token id; leave it out, or put an id where it has -1")


def _check_counts(
    question: SampleQuestion, prompt_length: int, max_tokens: int, info: ModelInfo, limits: Limits
) -> None:
    """How much is asked for at each position, and how much that may come to."""
    likeliest = min(limits.max_topk, info.vocab_size)
    asked = {
        "topk_prompt_logprobs": (question.topk_prompt_logprobs, likeliest),
        "topk_sample_logprobs": (question.topk_sample_logprobs, likeliest),
        "prompt_alt_tokens_k": (question.prompt_alt_tokens_k, limits.max_topk),
    }
    for name, (count, most) in asked.items():
        if not 0 <= count <= most:
            raise BadRequest(f"{name} is {count}; it must be 0 to {most}")
    targets = question.target_prompt_logprobs
    values = prompt_length * (question.topk_prompt_logprobs + question.prompt_alt_tokens_k)
    values += question.num_samples * max_tokens * question.topk_sample_logprobs
    values += 0 if targets is None else targets.values.size
    if values > limits.max_topk_values:
        raise BadRequest(
            f"the alternatives asked for (top-k, targets, drawn tokens) may come to {values} over all "
            f"positions, and one answer holds {limits.max_topk_values}; ask for fewer of them, of samples "
            "or of tokens at once"
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
    length = sum(map(len, strings))
    if len(strings) > MOST_STOPS or length > MOST_STOP_CHARACTERS:
        raise BadRequest(
            f"sampling_params.stop has {len(strings)} strings of {length} characters in all; every token is "
            f"compared with each of them, and there may be {MOST_STOPS}, of {MOST_STOP_CHARACTERS} characters"
        )
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
    return tuple(_digest(f"{seed}:{i}") for i in range(num_samples))


def prompt_seed(seed: int | None) -> int:
    """What is drawn along the prompt has a seed of its own, so that it leaves the samples as they are."""
    return secrets.randbits(63) if seed is None else _digest(f"{seed}:prompt")


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
