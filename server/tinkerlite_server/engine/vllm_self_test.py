"""The examination that vLLM passes before a server offers it.

A sampler whose logprobs are not those of the weights ruins a run without a sign, and vLLM's have
differed between versions, platforms and neighbours in a batch. So at the start, for every base
model, it samples a few tokens, and each claim below is compared with PyTorch's scorer. One that
does not hold is named, with its figures, and the server does not start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tinkerlite.types import SampledSequence, SampleResponse
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter, LoraPair
from tinkerlite_server.engine.protocols import AdapterConfig, Floats, Ids, Sampler, SampleWork
from tinkerlite_server.errors import EngineFailure, ServerError

BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Nats between vLLM's logprobs and PyTorch's, on average, by dtype. After prompts that mean nothing, as
here, two computations in bfloat16 are 0.03 to 0.04 apart; what is wrong is wrong by several tenths."""

_CROWD = 8
_PROMPT, _TOKENS = 24, 16
_TOPK = 3
_RANK, _STRENGTH = 8, 0.05
"""Of the adapter: its rank, and the size of B, which makes it matter."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is examined: a sampler's way with one base model."""

    sampler: Sampler
    scorer: Sampler
    """Knows the same adapters."""
    model: BaseModel

    def sample(self, *changes: dict[str, Any]) -> list[SampleResponse]:
        """Requests at once, each the plain one with changes."""
        return run(self.sampler, [self._work(str(i), **change) for i, change in enumerate(changes)])

    def scored(self, prompt: Ids, sequence: SampledSequence, adapter_id: str | None = None) -> Floats:
        """PyTorch's logprobs of a completion."""
        tokens = np.concatenate([prompt, sequence.tokens_np])
        [response] = run(
            self.scorer,
            [self._work("scoring", prompt=tokens, max_tokens=1, adapter_id=adapter_id, prompt_logprobs=True)],
        )
        assert response.prompt_logprobs_np is not None
        return response.prompt_logprobs_np[len(prompt) :]

    def prompt(self, number: int) -> Ids:
        """Some tokens."""
        return np.random.default_rng(number).integers(0, self.model.info.vocab_size, _PROMPT)

    def _work(self, key: str, **changes: Any) -> SampleWork:
        plain = SampleWork(
            key=key,
            base_model=self.model.info.name,
            adapter_id=None,
            prompt=self.prompt(0),
            num_samples=1,
            max_tokens=_TOKENS,
            seeds=(0,),
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            stop_ids=frozenset(),
        )
        return replace(plain, **changes)


def run(sampler: Sampler, works: Sequence[SampleWork]) -> list[SampleResponse]:
    """The works' responses, run together.

    Raises:
        ServerError: one of them failed.
    """
    outcomes: dict[str, SampleResponse] = {}
    for work in works:
        sampler.submit(work)
    while len(outcomes) < len(works):
        if not sampler.has_work:
            raise EngineFailure("a request was forgotten")
        for result in sampler.step():
            outcome = getattr(result, "outcome", None)
            if isinstance(outcome, ServerError):
                raise outcome
            if outcome is not None:
                outcomes[result.key] = outcome
    return [outcomes[work.key] for work in works]


def failures(subject: Subject) -> list[str]:
    """What does not hold of the bare model, in words; empty if all does."""
    found: list[str] = []
    found += _logprobs_are_pytorchs(subject)
    found += _identical_requests_agree(subject)
    found += _greedy_takes_the_likeliest(subject)
    return found


def _logprobs_are_pytorchs(subject: Subject) -> list[str]:
    """Side by side, at several temperatures: they are of temperature 1 all the same."""
    changes = [
        {"prompt": subject.prompt(i), "seeds": (i,), "temperature": temperature}
        for i, temperature in enumerate((1.0, 1.0, 0.5, 1.5))
    ]
    gaps = [
        _logprobs(response.sequences[0]) - subject.scored(change["prompt"], response.sequences[0])
        for change, response in zip(changes, subject.sample(*changes), strict=True)
    ]
    return _beyond(subject, gaps, "sampled logprobs differ from the PyTorch scorer's")


def _identical_requests_agree(subject: Subject) -> list[str]:
    """In fp32 on every token; in half precision, where rounding may tip a draw, on most before the first."""
    responses = subject.sample(*[{"seeds": (7,)}] * _CROWD)
    first, *others = [response.sequences[0] for response in responses]
    shared = [_shared(first, other) for other in others]
    least = _TOKENS if subject.model.info.dtype == "float32" else _TOKENS / 2
    if np.mean(shared) < least:
        return [f"{_CROWD} identical requests with one seed, at once, drew different tokens"]
    gaps = [(_logprobs(other) - _logprobs(first))[:n] for other, n in zip(others, shared, strict=True)]
    return _beyond(subject, gaps, f"logprobs of {_CROWD} identical requests, at once, differ")


def _shared(one: SampledSequence, other: SampledSequence) -> int:
    """Tokens at the beginning that are equal."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=True))
    return next((place for place, (left, right) in pairs if left != right), len(one.tokens))


def _greedy_takes_the_likeliest(subject: Subject) -> list[str]:
    [response] = subject.sample({"temperature": 0.0, "topk_sample_logprobs": _TOPK})
    [sequence] = response.sequences
    topk = sequence.topk_logprobs_np
    if topk is None or topk.token_ids.shape != (_TOKENS, _TOPK):
        return [f"{_TOPK} likeliest tokens at {_TOKENS} positions were asked for, and did not come"]
    # By their logprobs: among equally likely tokens, as rounded logits have them, either may come first.
    if not np.array_equal(topk.logprobs[:, 0], _logprobs(sequence)):
        return ["greedy sampling takes less likely tokens than those reported as the likeliest"]
    return []


# ---- adapters ----


def adapter_failures(subject: Subject, adapter_id: str) -> list[str]:
    """What does not hold of sampling from an adapter."""
    prompt = subject.prompt(1)
    adapted, bare = subject.sample({"prompt": prompt, "adapter_id": adapter_id}, {"prompt": prompt})
    [sequence] = adapted.sequences
    [plain] = bare.sequences
    of_adapter = _logprobs(sequence) - subject.scored(prompt, sequence, adapter_id)
    of_base = _logprobs(sequence) - subject.scored(prompt, sequence)
    if np.abs(of_base).mean() <= np.abs(of_adapter).mean():
        return ["an adapter is not applied: its logprobs are closer to the base model's than to its own"]
    gaps = [_logprobs(plain) - subject.scored(prompt, plain)]
    return [
        *_beyond(subject, [of_adapter], "logprobs with an adapter differ from the PyTorch scorer's"),
        *_beyond(subject, gaps, "logprobs of the base model, beside an adapter, differ from PyTorch's"),
    ]


def make_adapter(model: BaseModel, *, train_unembed: bool, max_rank: int) -> Adapter:
    """A random adapter that changes what the model says."""
    rank = min(_RANK, max_rank)
    config = AdapterConfig(rank=rank, alpha=float(rank), seed=0, train_unembed=train_unembed)
    fresh = Adapter.fresh(config, model.bank.targets)
    generator = torch.Generator().manual_seed(1)
    pairs: dict[str, LoraPair] = {}
    for path, pair in fresh.pairs.items():
        b = _STRENGTH * torch.randn(pair.b.shape, generator=generator)
        pairs[path] = LoraPair(pair.a.detach(), b.to(pair.b.device))
    return Adapter(config, pairs).frozen_copy(model.dtype)


# ---- figures ----


def _logprobs(sequence: SampledSequence) -> Floats:
    assert sequence.logprobs_np is not None
    return sequence.logprobs_np


def _beyond(subject: Subject, gaps: Sequence[Floats], what: str) -> list[str]:
    """In words, if the gaps are larger than the bound on average."""
    dtype = subject.model.info.dtype
    mean = float(np.abs(np.concatenate(gaps)).mean())
    # NaN is beyond every bound.
    if mean <= BOUNDS[dtype]:
        return []
    return [f"{what} by {mean:.2g} nats on average; {BOUNDS[dtype]:g} is the bound for {dtype}"]
