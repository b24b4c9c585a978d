"""The four figures of IFEval: per prompt and per instruction, strict and loose.

Strict takes a reply as it is. Loose forgives what chat models like to add: it also tries the reply
without its first line, without its last, without both, and each of these without asterisks.
Source: Zhou et al. 2023, arXiv:2311.07911, section 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cookbook.instructions.instruction import Instruction


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares between 0 and 1."""

    prompt_strict: float
    """Prompts all of whose instructions are followed."""
    prompt_loose: float
    instruction_strict: float
    """Instructions followed."""
    instruction_loose: float
    by_kind: dict[str, float]
    """Instructions followed, strictly, by the name of their class."""
    prompts: tuple[bool, ...]
    """Which prompts count in `prompt_strict`, in order."""


def follows(instruction: Instruction, reply: str) -> bool:
    """Strict: the reply says something and does what was asked."""
    return bool(reply.strip()) and instruction.is_followed(reply)


def follows_loosely(instruction: Instruction, reply: str) -> bool:
    """Loose: some lightly edited form of the reply does what was asked."""
    return any(follows(instruction, variant) for variant in variants(reply))


def variants(reply: str) -> list[str]:
    """The eight forms of a reply that count loosely, the reply itself first."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [text.replace("*", "") for text in cut]


def score(asked: Sequence[Sequence[Instruction]], replies: Sequence[str]) -> Scores:
    """Score one reply to each prompt.

    Args:
        asked: the instructions of each prompt, at least one.
        replies: one per prompt, in the same order.

    Raises:
        ValueError: different numbers of prompts and replies, or none.
    """
    if not asked:
        raise ValueError("there are no replies to score")
    strict = [[follows(i, reply) for i in given] for given, reply in zip(asked, replies, strict=True)]
    loose = [[follows_loosely(i, reply) for i in given] for given, reply in zip(asked, replies, strict=True)]
    by_kind: defaultdict[str, list[bool]] = defaultdict(list)
    for given, followed in zip(asked, strict, strict=True):
        for instruction, done in zip(given, followed, strict=True):
            by_kind[type(instruction).__name__].append(done)
    prompts = tuple(all(followed) for followed in strict)
    return Scores(
        prompt_strict=_share(prompts),
        prompt_loose=_share([all(followed) for followed in loose]),
        instruction_strict=_share([done for followed in strict for done in followed]),
        instruction_loose=_share([done for followed in loose for done in followed]),
        by_kind={kind: _share(done) for kind, done in sorted(by_kind.items())},
        prompts=prompts,
    )


def _share(done: Sequence[bool]) -> float:
    return sum(done) / len(done)
