"""Mathematics at full size: DeepMath to train on, AIME to be examined in, OpenThoughts' reasoning to imitate.

Answers are compared as mathematics, by the package `math-verify` (dependency group `experiments`). Every
data set can also be a local file of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

from cookbook.hub_data import HubDataError, Source, text_of
from cookbook.renderers import Message, RenderedExample, Renderer
from cookbook.rollouts import Grade, Problem

INSTRUCTION = "\n\nReason step by step, and put the final answer in \\boxed{}."
BOX = "\\boxed{"


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems with their answers, and which columns they are in."""

    source: Source
    question: str
    answer: str

    def problem(self, row: dict[str, Any]) -> Problem:
        """The problem of a row, with the instruction to box its answer."""
        question = text_of(row, self.question, self.source)
        return Problem(
            messages=(Message(role="user", content=question + INSTRUCTION),),
            answer=text_of(row, self.answer, self.source),
        )


DEEPMATH = ProblemSet(source=Source(name="zwhe99/DeepMath-103K"), question="question", answer="final_answer")
AIME_2024 = ProblemSet(source=Source(name="HuggingFaceH4/aime_2024"), question="problem", answer="answer")
OPEN_THOUGHTS = Source(name="open-thoughts/OpenThoughts3-1.2M")


@dataclass(frozen=True, kw_only=True)
class MathTask:
    """Trains on one set of problems and is examined on another. Implements `rollouts.Task`."""

    name: str = "deepmath"
    training: ProblemSet = DEEPMATH
    examination: ProblemSet = AIME_2024

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """All training problems in a random order, again and again."""
        return (self.training.problem(row) for row in self.training.source.endless(seed))

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` problems of the examination.

        Raises:
            HubDataError: it has fewer.
        """
        found = [self.examination.problem(row) for row in islice(self.examination.source.rows(), count)]
        if len(found) < count:
            raise HubDataError(f"{self.examination.source.name} has {len(found)} problems, not {count}")
        return found

    def grade(self, problem: Problem, reply: str) -> Grade:
        """1 for the right answer in the last box, however it is written; 0 otherwise."""
        last = reply.rfind(BOX)
        right = last >= 0 and same_mathematics(problem.answer, reply[last:])
        return Grade(reward=float(right), correct=right)


def same_mathematics(answer: str, reply: str) -> bool:
    r"""Whether the last answer of a reply equals the right one: 0.5 is \frac{1}{2}.

    Raises:
        HubDataError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise HubDataError("comparing answers needs the package math-verify: pip install --group experiments")
    math_verify: Any = import_module("math_verify")  # untyped, as it need not be installed
    right = math_verify.parse(f"\\boxed{{{answer}}}")
    return bool(math_verify.verify(right, math_verify.parse(reply)))


SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def reasoning_examples(
    renderer: Renderer, seed: int, *, longest: int, source: Source = OPEN_THOUGHTS
) -> Iterator[RenderedExample]:
    """Conversations of OpenThoughts, for `train_on_examples`, of at most `longest` tokens.

    Raises:
        HubDataError: a row has no conversation, or not one of them is short enough.
    """
    skipped = 0
    for row in source.endless(seed):
        example = renderer.training_example(_messages(row, source))
        if len(example.tokens) <= longest:
            skipped = 0
            yield example
            continue
        skipped += 1
        if skipped == SEARCHED:
            raise HubDataError(f"{source.name}: {skipped} conversations in a row exceed {longest} tokens")


SEARCHED = 1000


def _messages(row: dict[str, Any], source: Source) -> list[Message]:
    turns = row.get("conversations")
    try:
        messages = [Message(role=SPEAKERS[turn["from"]], content=turn["value"]) for turn in turns or ()]
    except (KeyError, TypeError) as error:
        raise HubDataError(
            f"{source.name} has a turn of another shape than from, value: {error!r}"
        ) from error
    if not messages:
        raise HubDataError(f"{source.name} has no column conversations; its columns are {sorted(row)}")
    return messages
