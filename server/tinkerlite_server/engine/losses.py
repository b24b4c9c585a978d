"""Losses: per-position terms whose sum is minimised.

Every loss is a sum over positions, then over datums, then over accumulated requests; the
client owns any normalisation. Gradients flow through `target_logprobs` only.

Symbols, per datum: lp_t = log p of the target under the weights being trained; q_t = log p
recorded when it was sampled; A_t = advantage; r_t = exp(lp_t - q_t); sg = stop gradient.
Positions that were given rather than sampled carry A_t = 0 and q_t = 0,
and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]
Loss = Callable[[Tensor, Inputs, Config], Tensor]


def cross_entropy(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """L = - sum w * lp. Targets (N,) or (N, K); weights of the same shape, of any sign.

    With K targets a position this is the gradient of any divergence whose weights the client
    computes: w = p_teacher gives forward KL; w = p (log p_teacher - log p) reverse KL.
    """
    return -(inputs["weights"] * target_logprobs)


def importance_sampling(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """L = - sum r * A: policy gradient corrected for the sampler lagging behind the trainer.

    Source: Schulman et al. 2017, eq. 6 (arXiv:1707.06347).
    """
    return -(_ratio(target_logprobs, inputs) * inputs["advantages"])


def ppo(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """L = - sum min(r * A, clip(r, low, high) * A). Bounds are on the ratio itself: 0.8 and 1.2.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347).
    """
    low, high = _bounds(inputs, config, 0.8, 1.2)
    return _pessimistic(_log_ratio(target_logprobs, inputs), inputs["advantages"], low, high)


def cispo(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """L = - sum sg(clip(r, low, high)) * lp * A: every token keeps a gradient. Bounds 0 and 4.

    Source: MiniMax-M1 report 2025 (arXiv:2506.13585).
    """
    low, high = _bounds(inputs, config, 0.0, 4.0)
    clipped = torch.clamp(_ratio(target_logprobs, inputs), low, high).detach()
    return -(clipped * target_logprobs * inputs["advantages"])


def dro(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """L = - sum (lp * A - beta / 2 * (lp - q)^2): a quadratic leash in place of a ratio. beta 0.01.

    Source: Richemond et al. 2024 (arXiv:2405.19107), with the advantage given in place of a value head's.
    """
    beta = config.get("beta", 0.01)
    drift = torch.where(_sampled(inputs), target_logprobs - inputs["logprobs"], 0.0)
    return -(target_logprobs * inputs["advantages"] - 0.5 * beta * drift**2)


def gspo(target_logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """PPO's clip on one ratio a sequence: s = exp(mean over the mask of lp - q). Bounds 0.8 and 1.2.

    s_t = s * exp(lp_t - sg lp_t) has the value s and the gradient of lp_t.
    Without `sequence_ratio_mask` the mean runs over the sampled positions.

    Source: Zheng et al. 2025, the token-level form of GSPO (arXiv:2507.18071).
    """
    low, high = _bounds(inputs, config, 0.8, 1.2)
    advantages = inputs["advantages"]
    mask = inputs.get("sequence_ratio_mask")
    mask = _sampled(inputs).float() if mask is None else mask
    held = target_logprobs.detach()
    mean = ((held - inputs["logprobs"]) * mask).sum() / mask.sum().clamp(min=1.0)
    return _pessimistic(mean + (target_logprobs - held), advantages, low, high)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
    "gspo": gspo,
}
"""Losses by their name on the wire."""


LARGEST_LOG_RATIO = 80.0
"""Nats: beyond any bound, and e to it is still a float."""


def _ratio(target_logprobs: Tensor, inputs: Inputs) -> Tensor:
    """r at sampled positions, 1 at given ones."""
    return _log_ratio(target_logprobs, inputs).exp()


def _log_ratio(target_logprobs: Tensor, inputs: Inputs) -> Tensor:
    return torch.where(_sampled(inputs), target_logprobs - inputs["logprobs"], 0.0)


def _sampled(inputs: Inputs) -> Tensor:
    """Where tokens were sampled: given ones carry q = 0 and A = 0, placeholders that mean nothing."""
    return (inputs["advantages"] != 0) | (inputs["logprobs"] != 0)


def _bounds(inputs: Inputs, config: Config, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Clip bounds: per token if the datum has them, else of the whole request, else the default."""
    template = inputs["advantages"]
    return (
        inputs.get("clip_low_threshold", template.new_tensor(config.get("clip_low_threshold", low))),
        inputs.get("clip_high_threshold", template.new_tensor(config.get("clip_high_threshold", high))),
    )


def _pessimistic(log_ratio: Tensor, advantages: Tensor, low: Tensor, high: Tensor) -> Tensor:
    # With A >= 0 the bound counts, and the ratio has no gradient: an infinite one's would be 0 * inf. With
    # A < 0 the loss is infinite, and refused.
    capped = torch.where(advantages >= 0, log_ratio.clamp(max=LARGEST_LOG_RATIO), log_ratio)
    ratio = capped.exp()
    return -torch.minimum(ratio * advantages, torch.clamp(ratio, low, high) * advantages)
