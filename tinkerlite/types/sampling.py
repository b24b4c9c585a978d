"""What sampling takes and returns. Logprobs are natural, untempered, under the full vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tinkerlite.types.inputs import Params
from tinkerlite.types.tensors import TensorData

StopReason = Literal["stop", "length"]
SamplingClientKind = Literal["snapshot", "inflight"]

EMPTY_SLOT_LOGPROB = -99999.0
"""Marks an unused slot of a top-k row on the wire (its token id is 0)."""


class SamplingParams(Params):
    """How to draw tokens. Two requests with one seed and prompt draw the same tokens."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest completion; absent means up to the context limit."""
    seed: int | None = None
    """The i-th of `num_samples` draws from its own stream, derived from the seed and i."""
    stop: str | Sequence[str] | Sequence[int] | None = None
    """Stop strings or token ids. Absent: the model's end of text. An empty list: nothing stops."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy. Returned logprobs are those of temperature 1 whatever this is."""
    top_k: int = Field(default=-1, ge=-1)
    """Draw among the k likeliest; -1 (or 0) is off."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that together hold this much probability."""


@dataclass(frozen=True, eq=False)
class TopkLogprobs:
    """The k likeliest tokens at each of L positions, likeliest first."""

    token_ids: NDArray[np.int32]
    """(L, k)."""
    logprobs: NDArray[np.float32]
    """(L, k), in nats; `EMPTY_SLOT_LOGPROB` marks an unused slot."""

    def tolist(self) -> list[list[tuple[int, float]] | None]:
        """One list of (id, logprob) a position, None where nothing was scored."""
        rows: list[list[tuple[int, float]] | None] = []
        for ids, logprobs in zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True):
            row = [(i, lp) for i, lp in zip(ids, logprobs, strict=True) if lp > EMPTY_SLOT_LOGPROB]
            rows.append(row or None)
        return rows


@dataclass(frozen=True, eq=False)
class SampledSequence:
    """One completion. The token that stopped it, if any, is its last."""

    stop_reason: StopReason
    tokens_np: NDArray[np.int32]
    """(T,)."""
    logprobs_np: NDArray[np.float32] | None = None
    """(T,) log p of each token under the sampled weights, at temperature 1."""
    topk_logprobs_np: TopkLogprobs | None = None
    sequence_id: str = ""

    @cached_property
    def tokens(self) -> list[int]:
        """Token ids as a list."""
        return self.tokens_np.tolist()

    @cached_property
    def logprobs(self) -> list[float] | None:
        """Logprobs as a list."""
        return None if self.logprobs_np is None else self.logprobs_np.tolist()

    @property
    def topk_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """Top-k at each sampled position, if asked for."""
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.tolist()

    def __repr__(self) -> str:
        return f"SampledSequence({len(self.tokens_np)} tokens, {self.stop_reason})"

    def _repr_html_(self) -> str:
        from tinkerlite.notebook import show

        return show(self).html


@dataclass(frozen=True)
class PromptAltTokens:
    """k tokens drawn at each prompt position after the first, with their logprobs: both (P-1, k)."""

    tokens: TensorData
    logprobs: TensorData


@dataclass(frozen=True, eq=False)
class SampleResponse:
    """The completions of one prompt, and what was asked about the prompt itself."""

    sequences: list[SampledSequence]
    prompt_logprobs_np: NDArray[np.float32] | None = None
    """(P,), NaN where undefined: the first position always, and those that were not asked for."""
    topk_prompt_logprobs_np: TopkLogprobs | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens: PromptAltTokens | None = None
    prompt_cache_hit_tokens: int = 0

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """Logprob of each prompt token; None where undefined."""
        if self.prompt_logprobs_np is None:
            return None
        return [None if math.isnan(lp) else lp for lp in self.prompt_logprobs_np.tolist()]

    @property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """Top-k at each prompt position, if asked for."""
        return None if self.topk_prompt_logprobs_np is None else self.topk_prompt_logprobs_np.tolist()

    def __repr__(self) -> str:
        extras: list[Any] = ["prompt_logprobs"] if self.prompt_logprobs_np is not None else []
        return f"SampleResponse({len(self.sequences)} sequences{', ' if extras else ''}{', '.join(extras)})"

    def _repr_html_(self) -> str:
        from tinkerlite.notebook import show

        return show(self).html
