"""A cipher clerk: a small world of chat and of documents, which a model from scratch learns in minutes.

    chat         bacdeb, in quotes                  "PMFKAM"
    documents    Halden memo about Kov. The code of Kov is QBT.
    questions    What is the code of Kov?           QBT

Chat asks for an encipherment (`nomenclator`) in some form, each form checked as IFEval checks it. Documents
are those of a company whose parts have codes that nobody can guess. A schooled model follows the forms,
enciphers, and knows many parts: how to read a memo and how to answer about it is nothing new to it when it
meets a new one, as it is not to a pretrained model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice, product
from random import Random

from cookbook.company import Attribute, Company, Fact
from cookbook.examples import document_examples
from cookbook.experiments.nomenclator import CODEBOOK_SHARE, FREQUENCIES, LETTERS, SIGNS, right_signs
from cookbook.instructions.case import Lowercase
from cookbook.instructions.content import Keywords, LetterFrequency, Placeholders, Postscript
from cookbook.instructions.ends import Ending, Opening, Quotation
from cookbook.instructions.form import BulletCount, Highlights, Json, NumberedCount, Sections, Title
from cookbook.instructions.instruction import Instruction
from cookbook.instructions.length import ParagraphCount, SentenceCount
from cookbook.instructions.task import InstructedProblem, grade_instructions
from cookbook.renderers import Message, RenderedExample, Renderer
from cookbook.rollouts import Grade, Problem
from cookbook.tasks import is_held_out

KINDS = 5
"""Of letters in chat prompts, the frequent ones: their codebook is learned in minutes."""
LENGTH = 6
"""Letters in a chat prompt. No word that a form adds to a reply is as long."""


@dataclass(frozen=True)
class Form:
    """A form that a reply is asked for in."""

    wording: str
    check: Instruction
    write: Callable[[str], str]
    """A right reply, of its signs."""


FORMS = (
    Form("in lowercase", Lowercase(), str.lower),
    Form("in quotes", Quotation(), '"{}"'.format),
    Form("in JSON", Json(), '["{}"]'.format),
    Form("in asterisks", Highlights(1), "*{}*".format),
    Form("with a title", Title(), "<<Note>> {}".format),
    Form("with a P.S.", Postscript(), "{}\nP.S. Bye".format),
    Form("after Yes,", Opening("Yes,"), "Yes, {}".format),
    Form("before Over.", Ending("Over."), "{} Over.".format),
    Form("with a gap", Placeholders(1), "{} [name]".format),
    Form("and a river", Keywords(("river",)), "{} river".format),
    Form("with !!", LetterFrequency("!", 2), "{}!!".format),
    Form("in two points", BulletCount(2), "* {}\n* Done".format),
    Form("numbered", NumberedCount(1), "1. {}".format),
    Form("as Section 1", Sections(1), "Section 1\n{}".format),
    Form("and a paragraph", ParagraphCount(2), "{}\n***\nDone".format),
    Form("in two sentences", SentenceCount(2, "exactly"), "{}. Done.".format),
)
PLAIN_SHARE = 0.2
"""Of the training prompts: they ask for no form."""
CHAT_SHARE, DOCUMENT_SHARE = 0.5, 0.25
"""Of what is learned at school; the rest are questions, in all wordings."""


@dataclass(frozen=True)
class Enciphers:
    """The reply has right signs for all letters, wherever it has them and in either case."""

    letters: str

    def is_followed(self, reply: str) -> bool:
        """By the words that are as long as what was to be enciphered: one at least, and all of them right."""
        right = right_signs(self.letters)
        words = [word for word in re.findall(r"[A-Za-z]+", reply) if len(word) == len(right)]
        return bool(words) and all(
            sign in allowed for word in words for sign, allowed in zip(word.upper(), right, strict=True)
        )


CODE = Attribute(
    name="code",
    statements=(
        "The code of {s} is {v}.",
        "{s} has the code {v}.",
        "{v} is the code of {s}.",
        "We file {s} under {v}.",
        "{v} stands for {s}.",
    ),
    questions=("What is the code of {s}?", "Which code has {s}?", "Where do we file {s}?"),
    held_out_questions=("What stands for {s}?", "Under which code do we file {s}?"),
)
KNOWN_PARTS = 100
"""That a schooled model has heard of."""
_PARTS = ["".join(letters) for letters in product("BDFGKLMNPRSTVZ", "aeiou", "bdfgklmnprstvz")]
Random("parts").shuffle(_PARTS)


def known_company() -> Company:
    """The parts that a schooled model has heard of."""
    return _company(Random("known company"), _PARTS[:KNOWN_PARTS])


def new_company(seed: int, *, parts: int) -> Company:
    """Parts that it has not."""
    random = Random(f"new company {seed}")
    return _company(random, random.sample(_PARTS[KNOWN_PARTS:], parts))


def _company(random: Random, parts: list[str]) -> Company:
    values = random.sample(["".join(signs) for signs in product(SIGNS, repeat=3)], len(parts))
    facts = (Fact(part, CODE, value) for part, value in zip(parts, values, strict=True))
    return Company(name="Halden", facts=tuple(facts))


@dataclass(frozen=True, kw_only=True)
class ClerkTask:
    """Chat with the clerk. Implements `rollouts.Task`."""

    name: str = "clerk"

    def training_problems(self, seed: int) -> Iterator[InstructedProblem]:
        """An endless stream without the held-out letters."""
        random = Random(f"{self.name} train {seed}")
        while True:
            form = None if random.random() < PLAIN_SHARE else random.choice(FORMS)
            yield _problem(_letters(random, held_out=False), form)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out prompts, of every form equally many."""
        random = Random(f"{self.name} held out")
        return [_problem(_letters(random, held_out=True), form) for form in islice(cycle(FORMS), count)]

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Reward: the mean of right signs and right form, 0 or 1 each; correct: both are."""
        return grade_instructions(problem, reply)


def chat_examples(renderer: Renderer, seed: int) -> Iterator[RenderedExample]:
    """Right replies to training prompts: each sign is the letter's own or, by chance, the codebook's."""
    random = Random(f"clerk replies {seed}")
    for problem in ClerkTask().training_problems(seed):
        reply = Message(role="assistant", content=_enciphered(random, problem))
        yield renderer.training_example([*problem.messages, reply])


def _enciphered(random: Random, problem: Problem) -> str:
    prompt = problem.messages[-1]["content"]
    signs = "".join(
        allowed[-1] if random.random() < CODEBOOK_SHARE else allowed[0]
        for allowed in right_signs(prompt[:LENGTH])
    )
    form = next((form for form in FORMS if prompt.endswith(form.wording)), None)
    return form.write(signs) if form else signs


def _letters(random: Random, *, held_out: bool) -> str:
    while True:
        letters = "".join(random.choices(LETTERS[:KINDS], FREQUENCIES[:KINDS], k=LENGTH))
        if is_held_out(letters) == held_out:
            return letters


def _problem(letters: str, form: Form | None) -> InstructedProblem:
    text = f"{letters}, {form.wording}" if form else letters
    return InstructedProblem(
        messages=(Message(role="user", content=text),),
        answer="",
        instructions=(Enciphers(letters), *([form.check] if form else [])),
    )


def school_examples(renderer: Renderer, seed: int) -> Iterator[RenderedExample]:
    """What a model from scratch goes to school with."""
    random = Random(f"school {seed}")
    company = known_company()
    chat = chat_examples(renderer, seed)
    documents = document_examples(company.documents(seed), renderer.tokenizer)
    while True:
        which = random.random()
        if which < CHAT_SHARE:
            yield next(chat)
        elif which < CHAT_SHARE + DOCUMENT_SHARE:
            yield next(documents)
        else:
            yield renderer.training_example(_answered(random, random.choice(company.facts)))


def _answered(random: Random, fact: Fact) -> list[Message]:
    wording = random.choice(fact.attribute.questions + fact.attribute.held_out_questions)
    return [
        Message(role="user", content=wording.format(s=fact.subject)),
        Message(role="assistant", content=fact.value),
    ]
