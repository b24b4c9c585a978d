"""Data for tests: one short sequence, as a prompt and as training examples."""

from __future__ import annotations

from typing import Any

from tinker import types

SEQUENCE = [5, 6, 7, 8, 9]
PROMPT = types.ModelInput.from_ints(SEQUENCE)
STEP = types.AdamParams(learning_rate=1e-2)
PROPORTIONAL = types.AdamParams(learning_rate=0.1, eps=1e3)
"""With eps beyond any gradient a first step is proportional to the gradient, not to its sign."""


def datum(inputs: list[int], **loss_fn_inputs: Any) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(inputs), loss_fn_inputs=loss_fn_inputs)


def lesson(sequence: list[int] = SEQUENCE, weight: float = 1.0) -> types.Datum:
    """Every token but the first, to be predicted."""
    return datum(sequence[:-1], target_tokens=sequence[1:], weights=[weight] * (len(sequence) - 1))


def rated(advantages: list[float], logprobs: list[float], **more: Any) -> types.Datum:
    """The sequence as a completion: what it was sampled with, and what it was worth."""
    return datum(SEQUENCE[:-1], target_tokens=SEQUENCE[1:], logprobs=logprobs, advantages=advantages, **more)
