"""Guards: signs that a run has collapsed, each with what to do about it.

Read from the rows that a run records anyway, so a run that goes on after a crash is judged as if
it had never stopped. One bad step proves nothing: all signs but NaN have to hold for several in a
row. A figure that a recipe does not record is no sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from cookbook.metrics import Row, figures

PATIENCE = 3
"""Steps in a row that have to show the same sign."""
NATS_ABOVE_BEST = 3.0
"""A KL or a loss per token has exploded when it is this far above its best."""
GRADIENT_FACTOR = 100.0
"""A gradient norm per token has exploded when it is this many times the largest before."""
GRADIENTS_SEEN = 5
"""Norms above zero that have to be known before one can be called too large."""
NO_ENTROPY = 0.01
"""Nats per token at which a student no longer tries anything."""
DISAGREES = 0.5
"""Nats per token at which student and teacher are of different opinions."""
NEVER_ENDS, ONCE_ENDED = 0.95, 0.5
"""Truncated fractions: where completions no longer end, and where at least half of them did."""
APART = 0.3
"""Nats per token between sampler and trainer that are more than rounding, in any dtype."""


class RunStopped(RuntimeError):
    """A run shows signs of collapse; the message says which, and what to do."""


Sign = Callable[[Sequence[Row], Sequence[Row]], str | None]
"""(earlier rows, the last PATIENCE rows) to what is wrong, or None."""


def sign_of_collapse(rows: Sequence[Row]) -> str | None:
    """What is wrong with a run whose last row is the one just made, and what to do; None if nothing is."""
    if broken := not_finite(rows[-1]):
        return (
            f"no finite number: {', '.join(broken)}. Lower learning_rate, and clip advantages that are huge"
        )
    if len(rows) < PATIENCE:
        return None
    earlier, recent = rows[:-PATIENCE], rows[-PATIENCE:]
    return next((found for sign in SIGNS if (found := sign(earlier, recent))), None)


def not_finite(row: Row) -> list[str]:
    """Names of the figures that are NaN or infinite, nested ones as "outer/inner"."""
    return [name for name, value in figures(row).items() if not isfinite(value)]


# ---- signs ----


def _one_answer(_: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """Every completion of different prompts is the same, and not always right."""
    if _are_short_on_purpose(recent):
        return None  # beginnings may well be the same
    if not _all(recent, "distinct_completions", lambda count: count == 1):
        return None
    if not _all(recent, "distinct_prompts", lambda count: count > 1):
        return None
    if _all(recent, "rollout_accuracy", lambda share: share == 1.0):
        return None
    return (
        "every completion is the same, whatever the prompt. Go back to an earlier checkpoint with a lower "
        "learning_rate and more prompts_per_step; for OPD, also give the advantages a clip"
    )


def _sure_and_wrong(earlier: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """No entropy is left, while the answers are wrong or have become so."""
    if _are_short_on_purpose(recent):
        return None  # no beginning is right
    if not _all(recent, "entropy", lambda nats: nats < NO_ENTROPY):
        return None
    measured = [row["reverse_kl"] for row in [*earlier, *recent] if row.get("reverse_kl") is not None]
    if any(nats < DISAGREES for nats in measured[-PATIENCE:]):
        return None  # sure of what the teacher is sure of
    best = max((row["rollout_accuracy"] for row in earlier if row.get("rollout_accuracy")), default=0.0)
    if not _all(recent, "rollout_accuracy", lambda share: share <= best / 2):
        return None
    entropy, accuracy = recent[-1]["entropy"], recent[-1]["rollout_accuracy"]
    return (
        f"the entropy is {entropy:.4f} nats a token, and {accuracy:.0%} of the rollouts are right: "
        "a student that is sure of wrong answers samples no others to learn from. "
        "Go back to an earlier checkpoint with a lower learning_rate or a larger group_size"
    )


def _no_longer_ends(earlier: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """All completions are cut, in a run in which most used to end by themselves."""
    if _are_short_on_purpose(recent):
        return None  # how many of these end says nothing
    if not _all(recent, "truncated_fraction", lambda share: share >= NEVER_ENDS):
        return None
    whole = [row for row in earlier if not row.get("short_on_purpose")]
    before = [row["truncated_fraction"] for row in whole if row.get("truncated_fraction") is not None]
    if min(before, default=1.0) > ONCE_ENDED:
        return None
    now = recent[-1]["truncated_fraction"]
    return (
        f"{now:.0%} of the completions are cut, where once {min(before):.0%} were: "
        "they have become endless. Go back to an earlier checkpoint with a lower learning_rate, or raise "
        "max_tokens if right answers need the room"
    )


def _kl_explodes(earlier: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """The KL is far above its best, and the reward is no higher for it."""
    measured = [row for row in [*earlier, *recent] if row.get("reverse_kl") is not None]
    before, now = measured[:-PATIENCE], measured[-PATIENCE:]
    if not before or now[-1] is not recent[-1]:
        return None
    best = min(before, key=lambda row: row["reverse_kl"])
    if not all(row["reverse_kl"] > best["reverse_kl"] + NATS_ABOVE_BEST for row in now):
        return None
    if any(row.get("reward", 0.0) > best.get("reward", 0.0) for row in now):
        return None  # RL may well leave a teacher that it only watches
    return (
        f"the KL to the teacher is {now[-1]['reverse_kl']:.2f} nats a token, after "
        f"{best['reverse_kl']:.2f} at step {best['step']}, and the reward is no higher than then. "
        "Lower learning_rate, or clip the advantages"
    )


def _loss_explodes(earlier: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """A supervised loss is far above its best."""
    before = [row["loss_per_token"] for row in earlier if row.get("loss_per_token") is not None]
    if not before or not _all(recent, "loss_per_token", lambda nats: nats > min(before) + NATS_ABOVE_BEST):
        return None
    return (
        f"the loss is {recent[-1]['loss_per_token']:.2f} nats a token, after {min(before):.2f} at its best. "
        "Lower learning_rate"
    )


def _gradient_explodes(earlier: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """Gradients are of another order than all before, by what a token contributes to them."""
    before = [norm for row in earlier if (norm := _gradient_per_token(row))]
    now = [_gradient_per_token(row) for row in recent]
    if len(before) < GRADIENTS_SEEN or any(
        norm is None or norm <= GRADIENT_FACTOR * max(before) for norm in now
    ):
        return None
    return (
        f"the gradient norm is {recent[-1]['optimizer_grad_norm']:.3g}, by the token more than "
        f"{GRADIENT_FACTOR:.0f} times the largest before. Lower learning_rate, and clip the advantages"
    )


def _gradient_per_token(row: Row) -> float | None:
    norm = row.get("optimizer_grad_norm")
    tokens = row.get("completion_tokens") or row.get("trained_tokens") or 1
    return None if norm is None else float(norm) / tokens


def _are_short_on_purpose(rows: Sequence[Row]) -> bool:
    return any(row.get("short_on_purpose") for row in rows)


def _sampler_is_not_the_trainer(_: Sequence[Row], recent: Sequence[Row]) -> str | None:
    """The same weights give other logprobs in sampling than in training."""
    if not _all(recent, "staleness_max", lambda updates: updates == 0):
        return None
    if not _all(recent, "logprob_difference_mean", lambda nats: nats > APART):
        return None
    return (
        f"sampler and trainer differ by {recent[-1]['logprob_difference_mean']:.2f} nats a token on the same "
        "weights: tokens are trained that were sampled from something else. "
        "Let `tinkerlite doctor` examine the backend"
    )


SIGNS: tuple[Sign, ...] = (
    _sampler_is_not_the_trainer,
    _one_answer,
    _sure_and_wrong,
    _no_longer_ends,
    _kl_explodes,
    _loss_explodes,
    _gradient_explodes,
)
"""In the order in which they are looked for: causes before what follows from them."""


def _all(rows: Sequence[Row], key: str, holds: Callable[[Any], bool]) -> bool:
    """Whether every row has the figure and it holds there."""
    return all(row.get(key) is not None and holds(row[key]) for row in rows)
