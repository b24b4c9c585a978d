"""Contexts: what a teacher is told that the student is not.

The same weights with a better prompt are a teacher as well: they know the answer, have seen
examples, or follow an instruction, and the student learns to do without (context distillation). The
teacher reads its own messages; the completion that it grades is the student's, token by token.

    A_t = log p(x_t | what the teacher is told, x_<t) - log p_student(x_t | the problem, x_<t)

A teacher that has been told the answer also prefers replies that take it as given: shorter ones, that
do not think. That is what you want of a model that answers at once, and it can cost a model that
reasons its reasoning (arXiv:2607.05184). Give `reverse_kl` a clip there, and watch the length.
Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cookbook.renderers import Message
from cookbook.rollouts import Problem

Context = Callable[[Problem], Sequence[Message]]
"""A problem to the messages that the teacher reads in its place."""


def instructed(instruction: str) -> Context:
    """A system message before the problem: the student learns to behave as if it were there.

    Source: Askell et al. 2021 (arXiv:2112.00861), section 2; on-policy as in arXiv:2602.12275.
    """

    def context(problem: Problem) -> Sequence[Message]:
        return [Message(role="system", content=instruction), *problem.messages]

    return context


def shown_examples(examples: Sequence[Problem]) -> Context:
    """Solved problems before the one at hand, as earlier turns of the conversation.

    Source: arXiv:2601.19897, with a fixed set of demonstrations.
    """
    turns = [
        turn
        for example in examples
        for turn in (*example.messages, Message(role="assistant", content=example.answer))
    ]

    def context(problem: Problem) -> Sequence[Message]:
        *before, question = problem.messages
        return [*before, *turns, question]

    return context


def told_the_answer(sentence: str = "(The answer is {answer}.)") -> Context:
    """The right answer, written behind the question: a teacher with privileged information.

    Source: arXiv:2601.18734.
    """

    def context(problem: Problem) -> Sequence[Message]:
        *before, question = problem.messages
        told = f"{question['content']}\n{sentence.format(answer=problem.answer)}"
        return [*before, Message(role=question["role"], content=told)]

    return context
