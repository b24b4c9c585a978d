"""What the experiments on behaviour share: prompts to chat about, a test of behaviour, a company to learn.

Behaviour is the share of prompts all of whose instructions a reply follows, knowledge that of questions
about a company's documents that a greedy reply answers. At full size, chat prompts and test come from files
of the shape of Tulu-3 and IFEval; at the small one, from the clerk's world.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from cookbook.chat_prompts import ChatPrompts
from cookbook.company import Company, CompanyTask, found_company
from cookbook.examples import document_examples, mixed, repeated, sampled_examples
from cookbook.experiments.clerk import ClerkTask, new_company
from cookbook.instructions.ifeval import load_ifeval
from cookbook.loop import Measure
from cookbook.measures import behaviour_measure, knowledge_measure
from cookbook.metrics import Row
from cookbook.renderers import RenderedExample, Renderer, Tokenizer
from cookbook.rollouts import Problem, Task, rollout
from cookbook.table import Column, number, percent
from tinkerlite import SamplingClient


@dataclass(frozen=True, kw_only=True)
class ChatSetting:
    """Chat prompts, and the test of behaviour."""

    chat_file: str = ""
    """Chat prompts of the shape of Tulu-3; none: the clerk's."""
    ifeval_file: str = ""
    """The test, of the shape of IFEval, whose replies are greedy; none: prompts to the clerk that training
    never meets, whose replies are drawn at temperature 1."""
    tested: int = 400
    """Prompts in the test."""
    max_tokens: int = 24
    """Longest reply in the test, in tokens."""

    def prompts(self) -> Task:
        """What to chat about while training."""
        return ChatPrompts(Path(self.chat_file)) if self.chat_file else ClerkTask()

    def behaviour(self, renderer: Renderer, seed: int) -> Measure:
        """The test."""
        if self.ifeval_file:
            problems = load_ifeval(Path(self.ifeval_file), limit=self.tested)
            return behaviour_measure(problems, renderer=renderer, max_tokens=self.max_tokens)
        problems = ClerkTask().held_out(self.tested)
        return behaviour_measure(problems, renderer=renderer, max_tokens=self.max_tokens, seed=seed)


@dataclass(frozen=True, kw_only=True)
class CompanySetting:
    """What there is to know."""

    kind: Literal["products", "parts"]
    """Products with four facts each, or parts of the clerk's company with a code each."""
    products: int
    """How many; the test asks about each fact twice."""
    answer_tokens: int
    """Longest answer to a question, in tokens."""

    def founded(self, seed: int, *, rounds: int = 1) -> Company:
        """A company of its own for every seed, with so many products for every round."""
        count = rounds * self.products
        if self.kind == "parts":
            return new_company(seed, parts=count)
        return found_company(seed, products=count)


@dataclass(frozen=True, kw_only=True)
class SampleSetting:
    """Chat that a model is asked to hold with itself: prompts, and its own replies."""

    prompts: int
    """Prompts that are answered once each."""
    max_tokens: int = 24
    """Longest reply, in tokens; a longer one is cut and learned all the same."""

    def examples(
        self, sampler: SamplingClient, task: Task, renderer: Renderer, seed: int
    ) -> list[RenderedExample]:
        """Its replies at temperature 1, at which they are its own distribution."""
        groups = rollout(
            sampler,
            list(islice(task.training_problems(seed), self.prompts)),
            renderer=renderer,
            task=task,
            group_size=1,
            max_tokens=self.max_tokens,
            seed=seed,
        )
        return sampled_examples(groups)


def documents_and_chat(
    company: Company, chat: list[RenderedExample], document_share: float, tokenizer: Tokenizer, seed: int
) -> Iterator[RenderedExample]:
    """An endless mix of a company's documents and of chat; a share of 1 needs no chat."""
    documents = document_examples(company.documents(seed), tokenizer)
    return documents if document_share == 1.0 else mixed(documents, repeated(chat, seed), document_share)


def questions_about(company: Company) -> list[Problem]:
    """Every held-out question."""
    count = sum(len(fact.attribute.held_out_questions) for fact in company.facts)
    return CompanyTask(company=company).held_out(count)


def knowledge_of(
    company: Company, part: Company, renderer: Renderer, max_tokens: int, name: str = "knowledge"
) -> Measure:
    """What is known of a part of a company; naming another part's value is wrong too."""
    return knowledge_measure(
        CompanyTask(company=company),
        questions_about(part),
        renderer=renderer,
        max_tokens=max_tokens,
        name=name,
    )


def columns(*knowledge: str, kl: str | None = None) -> tuple[Column, ...]:
    """What the runs of these experiments show.

    Args:
        knowledge: names of measures that are shares.
        kl: name of one in nats per token.
    """
    return (
        Column("step", lambda row: str(row["step"]), 4),
        Column("loss/token", number("loss_per_token", 3), 10),
        Column("reverse KL", number("reverse_kl", 3), 10),
        Column("behaviour", percent("behaviour"), 9),
        *(Column(name.replace("_", " "), percent(name), 9) for name in knowledge),
        *([] if kl is None else [Column(kl.replace("_", " "), number(kl, 3), 11)]),
        Column("tokens/s", number("tokens_per_second", 0), 8),
    )


def last_measured(rows: list[Row], name: str) -> float:
    """A figure's value in the last row that has it.

    Raises:
        KeyError: no row has it.
    """
    for row in reversed(rows):
        if row.get(name) is not None:
            return float(row[name])
    raise KeyError(f"no row has {name!r}")


LEARNED = 0.25
"""Share of the questions below which it makes no sense to ask how much of the knowledge is kept."""


def kept(after: float, before: float, *, least: float = 0.0) -> float | None:
    """The share that is left; None where there was nothing to lose, or less than is worth the name."""
    return after / before if before > 0 and before >= least else None
