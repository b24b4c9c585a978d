"""Jobs and samples: one request's progress, and that of each of its completions.

A `Job` is a `SampleWork` on its way to a `SampleResponse`; it starts its samples one after the
other, as room allows. A `Sample` is one completion in the making. Knows neither torch passes
nor slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinkerlite.types import SampledSequence, SampleResponse, StopReason, TopkLogprobs
from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.draws import DrawRule, uniforms
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.prompts import PromptState
from tinkerlite_server.engine.protocols import Floats, SampledToken, SampleWork
from tinkerlite_server.engine.scoring import PromptScores
from tinkerlite_server.engine.stops import StopRule
from tinkerlite_server.errors import EngineFailure


@dataclass(eq=False)
class Job:
    """One request. Holds its adapter, so that dropping the name frees nothing under a running sample."""

    work: SampleWork
    adapter: Adapter | None
    stop: StopRule
    prompt: PromptState | None = None
    """Set once read; let go when every sample has started."""
    past: KeysValues | None = None
    """What is known of the prompt's first tokens."""
    started: int = 0
    closed: bool = False
    """Its one result, response or error, has been reported."""
    _finished: dict[int, SampledSequence] = field(default_factory=dict)
    _scores: PromptScores | None = None

    @property
    def decodes(self) -> bool:
        """Whether its samples go on after their first token, which takes slots."""
        return self.work.max_tokens > 1

    @property
    def unstarted(self) -> int:
        """Samples that have no token yet."""
        return self.work.num_samples - self.started

    @property
    def longest(self) -> int:
        """Tokens of prompt and completion at most."""
        return len(self.work.prompt) + self.work.max_tokens

    def take_prompt(self, state: PromptState | None, scores: PromptScores) -> None:
        """Record what reading the prompt gave.

        Args:
            state: what its samples start from; None where something else makes them.

        Raises:
            EngineFailure: its logprobs are not finite.
        """
        if not scores.finite:
            raise not_finite(self.work, "the prompt's logprobs")
        self._scores = scores
        self.prompt, self.past = state, None

    def start(self, count: int) -> list[Sample]:
        """The next samples, each without a token."""
        samples = [Sample(self, index) for index in range(self.started, self.started + count)]
        self.started += count
        return samples

    def finish(self, sample: Sample, reason: StopReason) -> SampleResponse | None:
        """Keep one completion; the response if it was the last."""
        self._finished[sample.index] = sample.sequence(reason)
        if len(self._finished) < self.work.num_samples:
            return None
        self.closed = True
        sequences = [self._finished[index] for index in range(self.work.num_samples)]
        scores = self._scores
        assert scores is not None, "samples start once their prompt has been read"
        return SampleResponse(
            sequences,
            prompt_logprobs_np=scores.logprobs,
            topk_prompt_logprobs_np=scores.topk,
            target_prompt_logprobs=scores.targets,
            prompt_alt_tokens=scores.alternatives,
        )


class Sample:
    """One completion in the making."""

    def __init__(self, job: Job, index: int) -> None:
        work = job.work
        self.job = job
        self.index = index
        self.rule = DrawRule(temperature=work.temperature, top_k=work.top_k, top_p=work.top_p)
        self.tokens: list[int] = []
        self._uniforms = uniforms(work.seeds[index])
        self._logprobs: list[float] = []
        self._topk_ids: list[NDArray[np.int64]] = []
        self._topk_logprobs: list[Floats] = []

    @property
    def length(self) -> int:
        """Tokens of prompt and completion so far."""
        return len(self.job.work.prompt) + len(self.tokens)

    def uniform(self) -> float:
        """This sample's next number in [0, 1)."""
        return self._uniforms.random()

    def add(self, token: int, logprob: float) -> StopReason | None:
        """Append a token; why it ends the sample, or None.

        Raises:
            EngineFailure: the logprob is not finite, so the token means nothing.
        """
        if not math.isfinite(logprob):
            raise not_finite(self.job.work, f"the logits of token {len(self.tokens)} of sample {self.index}")
        self.tokens.append(token)
        self._logprobs.append(logprob)
        return self.job.stop.reason(self.tokens)

    def add_topk(self, ids: NDArray[np.int64], logprobs: Floats) -> None:
        """Append the likeliest tokens of a position, of which the request wants the first few."""
        k = self.job.work.topk_sample_logprobs
        self._topk_ids.append(ids[:k])
        self._topk_logprobs.append(logprobs[:k])

    def newest(self, reason: StopReason | None) -> SampledToken:
        """The last token, for those who follow the sample."""
        topk: list[tuple[int, float]] = []
        if self._topk_ids:
            topk = list(zip(self._topk_ids[-1].tolist(), self._topk_logprobs[-1].tolist(), strict=True))
        return SampledToken(self.job.work.key, self.index, self.tokens[-1], self._logprobs[-1], topk, reason)

    def sequence(self, reason: StopReason) -> SampledSequence:
        """The completion."""
        topk = None
        if self._topk_ids:
            topk = TopkLogprobs(
                np.stack(self._topk_ids).astype(np.int32), np.stack(self._topk_logprobs).astype(np.float32)
            )
        return SampledSequence(
            stop_reason=reason,
            tokens_np=np.array(self.tokens, np.int32),
            logprobs_np=np.array(self._logprobs, np.float32),
            topk_logprobs_np=topk,
        )


def not_finite(work: SampleWork, what: str) -> EngineFailure:
    """The model gave NaN or infinity: an error of the weights, never an answer."""
    weights = work.base_model if work.adapter_id is None else f"{work.base_model} with {work.adapter_id}"
    return EngineFailure(
        f"{what} are not finite under {weights}: the weights have diverged. "
        "Go back to an earlier checkpoint, and train on with a lower learning rate."
    )
