"""Scoring: whether prompt logprobs are really there, whether they agree, and how many alternatives come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinkerlite.doctor.findings import TOLERABLE, Finding, as_array, judge, precision
from tinkerlite.doctor.sampling import only
from tinkerlite.errors import (
    APIResponseValidationError,
    APIStatusError,
    CapabilityError,
    RequestFailedError,
)
from tinkerlite.sampling_client import SamplingClient
from tinkerlite.types import ModelInput, SamplingParams, TopkLogprobs

TOPK_LADDER = (1, 5, 20, 100, 1000)
"""Tried in turn on servers that do not say their limit."""

_NO_SCORES = "distillation needs a teacher that scores every token of a given text, and this server does not"


def prompt_logprobs(sampler: SamplingClient, text: list[int]) -> Finding:
    """One for each token but the first, finite, not positive, and about this text."""
    check = "prompt logprobs"
    try:
        scored = as_array(sampler.compute_logprobs(ModelInput.from_ints(text)).result())
    except (CapabilityError, APIResponseValidationError) as error:
        return Finding(check=check, outcome="fail", says=str(error), advice=_NO_SCORES)
    measured: dict[str, object] = {"tokens": len(text), "returned": len(scored)}
    problem = _problem(scored, len(text))
    if problem:
        return Finding(check=check, outcome="fail", says=problem, advice=_NO_SCORES, measured=measured)
    measured |= {"mean": float(scored[1:].mean())}
    says = f"one for each of {len(text)} tokens but the first; mean {scored[1:].mean():.3f} nats"
    return Finding(check=check, outcome="pass", says=says, measured=measured)


def _problem(scored: np.ndarray, length: int) -> str:
    if not np.isnan(scored[0]):
        return "the first token has one, though nothing comes before it: the others may be off by one"
    if not np.isfinite(scored[1:]).all():
        return f"{int((~np.isfinite(scored[1:])).sum())} of {length - 1} are missing or not finite"
    if (scored[1:] > 1e-3).any():
        return f"one is {scored[1:].max():.3g}, and the logarithm of a probability is never positive"
    if not scored[1:].any():
        return "all are 0: the server fills in a number instead of scoring"
    return ""


def agreement(sampler: SamplingClient, text: list[int], scorings: int, dtype: str | None) -> Finding:
    """The same text, scored several times at once: batching and replicas must not change it.

    Judged by the spread (largest less smallest) at each token, averaged over the tokens.
    """
    prompt = ModelInput.from_ints(text)
    under_way = [sampler.compute_logprobs(prompt) for _ in range(scorings)]
    scored = np.stack([as_array(future.result())[1:] for future in under_way]).astype(np.float64)
    spread = scored.max(axis=0) - scored.min(axis=0)
    mean, largest = float(spread.mean()), float(spread.max())
    outcome = judge(mean, dtype)
    return Finding(
        check="concurrent scorings",
        outcome=outcome,
        says=f"{scorings} of one text at once differ by {largest:.2g} nats at most, {mean:.2g} on average "
        f"({precision(dtype)})",
        advice=""
        if outcome == "pass"
        else "the same question gets different answers, by as much as distillation may teach: replicas "
        "with other weights or kernels, or numbers that depend on the batch",
        measured={"scorings": scorings, "mean": mean, "max": largest},
    )


def topk(sampler: SamplingClient, text: list[int], announced: int | None) -> Finding:
    """How many alternatives a position can have, in prompts and in completions; and whether they fit."""
    prompt, params = ModelInput.from_ints(text), SamplingParams(max_tokens=1)

    def of_prompt(k: int) -> TopkLogprobs | None:
        response = sampler.sample(
            prompt, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=k
        ).result()
        return response.topk_prompt_logprobs_np

    def of_sample(k: int) -> TopkLogprobs | None:
        return only(sampler.sample(prompt, 1, params, topk_sample_logprobs=k).result()).topk_logprobs_np

    ladder = (announced,) if announced else TOPK_LADDER
    limits = {"prompt": _most(of_prompt, ladder), "sampled": _most(of_sample, ladder)}
    measured: dict[str, object] = {"announced": announced, **limits}
    said = f"the server announces {announced}" if announced else f"tried up to {TOPK_LADDER[-1]}"
    says = f"{limits['prompt']} at a prompt's positions, {limits['sampled']} at sampled ones ({said})"
    if limits["prompt"] == 0:
        return Finding(
            check="top-k",
            outcome="warn",
            says="there are no top-k logprobs of a prompt" + (f", though {said}" if announced else ""),
            advice="distillation of the sampled tokens works; that of top-k needs another server",
            measured=measured,
        )
    gap = _misfit(sampler, text, limits["prompt"])
    if gap > TOLERABLE:
        return Finding(
            check="top-k",
            outcome="fail",
            says=f"{says}; but a token's logprob and its entry in the top-k differ by {gap:.2g} nats",
            advice="do not distil from this server's top-k",
            measured=measured,
        )
    short = announced is not None and min(limits.values()) < announced
    return Finding(
        check="top-k",
        outcome="warn" if short else "pass",
        says=says,
        advice="ask for no more than that" if short else "",
        measured=measured,
    )


def _most(ask: Callable[[int], TopkLogprobs | None], ladder: tuple[int, ...]) -> int:
    """The widest answer on the ladder, 0 if there is none."""
    most = 0
    for k in ladder:
        try:
            answer = ask(k)
        except (CapabilityError, RequestFailedError, APIStatusError):
            break  # refused, each server in its own way
        width = max((len(row) for row in answer.tolist() if row), default=0) if answer is not None else 0
        most = max(most, width)
        if width < k:
            break
    return most


def _misfit(sampler: SamplingClient, text: list[int], k: int) -> float:
    """The largest |difference| between a prompt token's logprob and its own entry in the top-k."""
    params = SamplingParams(max_tokens=1)
    response = sampler.sample(
        ModelInput.from_ints(text), 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=k
    ).result()
    rows, logprobs = response.topk_prompt_logprobs or [], response.prompt_logprobs or []
    gaps = [
        abs(listed - logprob)
        for token, row, logprob in zip(text, rows, logprobs, strict=False)
        for number, listed in row or ()
        if number == token and logprob is not None
    ]
    return max(gaps, default=0.0)
