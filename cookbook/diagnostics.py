"""Diagnostics: figures of one step of on-policy training, from its rollouts alone.

Pure functions from groups to rows. Means are over tokens unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cookbook.advantages import kl_per_token
from cookbook.datums import Floats
from cookbook.evaluation import t_95
from cookbook.metrics import Row
from cookbook.objectives import Credit, TokenWeights
from cookbook.rollouts import Group

RATIO_PERCENTILES = (1, 50, 99)
"""Of the importance ratios, recorded beside their extremes."""


def rollout_figures(groups: Sequence[Group]) -> Row:
    """Reward, accuracy, length, truncation, variety and an entropy estimate of a batch of rollouts.

    `entropy` is -mean(log p) of the sampled tokens: unbiased at temperature 1, in nats.
    `reward_interval` is its 95% interval over other prompts (with a single prompt: over other completions
    of it). `uniform_groups` is the share of groups whose rewards are all equal, which RL cannot learn from.
    `end_of_text_rate` is the share of completions that hold the token that ends a reply. Where it and
    `truncated_fraction` do not add up to 1, the backend ends completions without it.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    rewards = [[t.grade.reward for t in group.trajectories] for group in groups]
    mean_reward = float(np.mean([t.grade.reward for t in trajectories]))
    clusters = rewards if len(groups) > 1 else [[reward] for reward in rewards[0]]
    logprobs = np.concatenate([t.logprobs for t in trajectories])
    return {
        "reward": mean_reward,
        "reward_interval": _interval(mean_reward, [np.asarray(rewards, np.float32) for rewards in clusters]),
        "rollout_accuracy": float(np.mean([t.grade.correct for t in trajectories])),
        "uniform_groups": float(np.mean([min(r) == max(r) for r in rewards])),
        "truncated_fraction": float(np.mean([t.truncated for t in trajectories])),
        "end_of_text_rate": float(np.mean([t.finished for t in trajectories])),
        "distinct_prompts": len({tuple(t.prompt_tokens) for t in trajectories}),
        "distinct_completions": len({tuple(t.completion_tokens) for t in trajectories}),
        "completion_tokens": len(logprobs),
        "completion_length": len(logprobs) / len(trajectories),
        "entropy": float(-np.mean(logprobs)),
    }


def kl_figures(groups: Sequence[Group], teacher_logprobs: list[list[Floats]]) -> Row:
    """Reverse KL from student to teacher, in nats per token, and where in the completion it sits.

    The mean of log p_student - log p_teacher over the student's own tokens; being an estimate it may
    dip below 0. `reverse_kl_interval` is its 95% interval over other prompts (with a single prompt: over
    other completions of it). Positions are binned by powers of two: "0", "1", "2-3", "4-7", ...
    """
    by_group = kl_per_token(groups, teacher_logprobs)
    per_completion = [kl for of_group in by_group for kl in of_group]
    clusters = per_completion if len(by_group) == 1 else [np.concatenate(of_group) for of_group in by_group]
    mean = float(np.mean(np.concatenate(per_completion)))
    return {
        "reverse_kl": mean,
        "reverse_kl_interval": _interval(mean, clusters),
        "kl_by_position": _by_position(per_completion),
    }


def advantage_figures(credits: Sequence[Sequence[Credit]]) -> Row:
    """Mean and root mean square of the advantages: the size of what is asked of the student.

    Of token weights, a position counts by the sum of its K weights, and by the sum of their squares.
    """
    rows = [
        credit.weights if isinstance(credit, TokenWeights) else credit[:, None]
        for of_group in credits
        for credit in of_group
    ]
    sums = np.concatenate([row.sum(axis=1) for row in rows])
    squares = np.concatenate([(row**2).sum(axis=1) for row in rows])
    return {"advantage_mean": float(np.mean(sums)), "advantage_rms": float(np.sqrt(np.mean(squares)))}


def clustered_standard_error(clusters: Sequence[Floats]) -> float:
    """Standard error of the mean over all values, when those of one cluster hang together.

    With m the mean, N the number of values and C that of clusters, linearised as a ratio:

        se^2 = C / (C - 1) * sum_c (sum_{x in c} (x - m))^2 / N^2

    Zero for a single cluster, which says nothing about others.
    """
    if len(clusters) < 2:
        return 0.0
    values = np.concatenate(clusters).astype(np.float64)
    mean = values.mean()
    off = np.asarray([np.sum(cluster.astype(np.float64) - mean) for cluster in clusters])
    scale = len(clusters) / (len(clusters) - 1)
    return float(np.sqrt(scale * np.sum(off**2)) / len(values))


def _interval(mean: float, clusters: Sequence[Floats]) -> list[float] | None:
    """95% interval of the mean, by Student's t, as there may be few clusters; None for a single one."""
    if len(clusters) < 2:
        return None
    half = t_95(len(clusters) - 1) * clustered_standard_error(clusters)
    return [mean - half, mean + half]


def staleness_figures(groups: Sequence[Group], policy_version: int) -> Row:
    """How many updates behind the weights to be trained the rollouts were sampled, in updates."""
    behind = [policy_version - group.policy_version for group in groups]
    return {"staleness_mean": float(np.mean(behind)), "staleness_max": max(behind)}


def agreement_figures(groups: Sequence[Group], trainer_logprobs: Sequence[Floats]) -> Row:
    """How far the trainer's logprobs lie from those that the tokens were sampled at.

    With d = log p_trainer - log p_sampler on the same weights, d should be rounding noise and the
    importance ratios r = exp(d) should be 1. Anything else trains on the wrong distribution.
    `sampler_trainer_kl` estimates KL(sampler || trainer) by mean(r - 1 - d), which is never below 0.

    Args:
        groups: the rollouts.
        trainer_logprobs: one (T,) array per trajectory, groups after one another.
    """
    sampled = [t.logprobs for group in groups for t in group.trajectories]
    difference = np.concatenate([p - q for p, q in zip(trainer_logprobs, sampled, strict=True)])
    ratios = np.exp(difference.astype(np.float64))
    percentiles = np.percentile(ratios, RATIO_PERCENTILES)
    return {
        "logprob_difference_mean": float(np.mean(np.abs(difference))),
        "logprob_difference_max": float(np.max(np.abs(difference))),
        "sampler_trainer_kl": float(np.mean(ratios - 1 - difference)),
        "ratio_mean": float(np.mean(ratios)),
        **{f"ratio_p{p}": float(r) for p, r in zip(RATIO_PERCENTILES, percentiles, strict=True)},
        "ratio_min": float(np.min(ratios)),
        "ratio_max": float(np.max(ratios)),
    }


def _by_position(per_completion: Sequence[Floats]) -> dict[str, float]:
    longest = max(len(kl) for kl in per_completion)
    bins: dict[str, float] = {}
    start, width = 0, 1
    while start < longest:
        inside = np.concatenate([kl[start : start + width] for kl in per_completion])
        name = str(start) if width == 1 else f"{start}-{start + width - 1}"
        bins[name] = float(np.mean(inside))
        start, width = start + width, start + width
    return bins
