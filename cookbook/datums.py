"""Datums: the one place that shifts tokens.

The model reads tokens 0..N-2 and is scored on tokens 1..N-1, so position i of every per-token
array belongs to the token *after* input i:

    full        <s>  what  is  2+2  ?   4   <end>      (P = 5 prompt tokens, T = 2 of the completion)
    input       <s>  what  is  2+2  ?   4
    target      what is    2+2 ?    4   <end>
    per token   0    0     0   0    a_0 a_1            (P - 1 zeros, then the completion's T values)

Knows nothing about where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cookbook.renderers import RenderedExample
from tinkerlite.types import Datum, ModelInput, TensorData

Floats = NDArray[np.float32]


def supervised_datum(example: RenderedExample) -> Datum:
    """A `cross_entropy` datum: learn the tokens that the example's mask marks."""
    tokens = _at_least_two(example.tokens)
    return Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(np.asarray(tokens[1:], dtype=np.int64)),
            "weights": TensorData.from_numpy(example.mask[1:]),
        },
    )


def policy_datum(
    prompt_tokens: Sequence[int],
    completion_tokens: Sequence[int],
    sampling_logprobs: Floats,
    advantages: Floats,
) -> Datum:
    """A datum of the policy losses (`importance_sampling`, `ppo`, `cispo`).

    Prompt positions carry advantage 0, so what was given is never trained, and logprob 0.

    Args:
        prompt_tokens: (P,) at least one.
        completion_tokens: (T,) at least one.
        sampling_logprobs: (T,) log q recorded when each token was sampled, in nats.
        advantages: (T,) one per completion token.

    Raises:
        ValueError: a length differs from T, or there is nothing to read or to score.
    """
    if not len(completion_tokens) == len(sampling_logprobs) == len(advantages):
        raise ValueError(
            f"a completion of {len(completion_tokens)} tokens needs as many logprobs and advantages, "
            f"got {len(sampling_logprobs)} and {len(advantages)}"
        )
    if not prompt_tokens or not completion_tokens:
        raise ValueError("a policy datum needs at least one prompt token and one completion token")
    full = [*prompt_tokens, *completion_tokens]
    given = np.zeros(len(prompt_tokens) - 1, dtype=np.float32)
    return Datum(
        model_input=ModelInput.from_ints(full[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(np.asarray(full[1:], dtype=np.int64)),
            "logprobs": TensorData.from_numpy(np.concatenate([given, sampling_logprobs])),
            "advantages": TensorData.from_numpy(np.concatenate([given, advantages])),
        },
    )


def weighted_datum(
    prompt_tokens: Sequence[int],
    completion_tokens: Sequence[int],
    targets: NDArray[np.int64],
    weights: Floats,
) -> Datum:
    """A `cross_entropy` datum that weights K tokens at each position of the completion.

    Prompt positions carry weight 0, as in `policy_datum`; their K targets are all the next token.

    Args:
        prompt_tokens: (P,) at least one.
        completion_tokens: (T,) at least one; what the model reads.
        targets: (T, K) what it is scored on.
        weights: (T, K) of any sign.

    Raises:
        ValueError: a shape does not fit, or there is nothing to read or to score.
    """
    if targets.ndim != 2 or targets.shape != weights.shape or len(targets) != len(completion_tokens):
        raise ValueError(
            f"a completion of {len(completion_tokens)} tokens needs as many rows of targets and weights, "
            f"got shapes {targets.shape} and {weights.shape}"
        )
    if not prompt_tokens or not completion_tokens:
        raise ValueError("a weighted datum needs at least one prompt token and one completion token")
    full = [*prompt_tokens, *completion_tokens]
    given = np.asarray(prompt_tokens[1:], dtype=np.int64)[:, None].repeat(targets.shape[1], axis=1)
    return Datum(
        model_input=ModelInput.from_ints(full[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(np.concatenate([given, targets])),
            "weights": TensorData.from_numpy(
                np.concatenate([np.zeros(given.shape, dtype=np.float32), weights.astype(np.float32)])
            ),
        },
    )


def completion_part(per_token: Floats, prompt_length: int) -> Floats:
    """The completion's T values (or rows) of an array aligned with a datum's targets: undo the shift."""
    return per_token[prompt_length - 1 :]


def _at_least_two(tokens: list[int]) -> list[int]:
    if len(tokens) < 2:
        raise ValueError(f"a training example needs at least two tokens, this one has {len(tokens)}")
    return tokens
