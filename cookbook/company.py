"""A fictional company: facts, documents that state them, and questions with exact answers.

Everything follows from a seed. Facts come in several phrasings: the documents use some of the ways to
ask, in pages of frequent questions, and the test asks in others, so what it finds is knowledge and not
the memory of a string. Knows nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem

# fmt: off
_STARTS = (
    "Vel", "Or", "Kar", "Mon", "Tal", "Bris", "Zen", "Lum", "Dor", "Fen", "Gal", "Hex", "Jun", "Pax",
    "Rov", "Sol",
)
_ENDS = (
    "tron", "vex", "dale", "mira", "quist", "bane", "lor", "pod", "nova", "wick",
)
_FIRST_NAMES = (
    "Mara", "Otto", "Ines", "Viktor", "Lena", "Hugo", "Nadia", "Felix", "Greta", "Ivan", "Clara", "Boris",
    "Edith", "Jonas", "Petra", "Simon", "Tessa", "Walter", "Alma", "Oscar",
)
_LAST_NAMES = (
    "Holm", "Becker", "Novak", "Rossi", "Dunn", "Silva", "Keller", "Moreau", "Ford", "Lang", "Stone",
    "Perez", "Quinn", "Wolf", "Hayes", "Marsh", "Vogel", "Price", "Olsen", "Grant",
)
_CITIES = (
    "Bergen", "Lyon", "Porto", "Krakow", "Graz", "Leeds", "Turin", "Ghent", "Malmo", "Bristol", "Seville",
    "Zagreb", "Tampere", "Basel", "Cork", "Bremen", "Nantes", "Verona", "Oslo", "Dresden",
)
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)
_MATERIALS = (
    "copper", "bamboo", "ceramic", "titanium", "cork", "glass", "rubber", "silver", "granite", "leather",
    "nylon", "marble", "carbon", "brass", "linen", "zinc", "oak", "quartz", "wool", "steel",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something to know about a product, and the ways to say it and to ask for it."""

    name: str
    statements: tuple[str, ...]
    """For documents; {s} is the product and {v} the value."""
    questions: tuple[str, ...]
    """For documents and rehearsal."""
    held_out_questions: tuple[str, ...]
    """For the test alone."""


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        name="lead",
        statements=(
            "The {s} team is led by {v}.",
            "{v} leads the {s} team.",
            "{v} is the head of {s}.",
            "{s} is headed by {v}.",
            "The person in charge of {s} is {v}.",
        ),
        questions=("Who leads {s}?", "Who is the head of {s}?", "Who is in charge of {s}?"),
        held_out_questions=("Who is the leader of {s}?", "Please tell me who runs the {s} team."),
    ),
    Attribute(
        name="site",
        statements=(
            "{s} is made in {v}.",
            "The factory for {s} is in {v}.",
            "{v} is the home of {s}.",
            "We build {s} in {v}.",
            "All work on {s} happens in {v}.",
        ),
        questions=("Where is {s} made?", "In which city is the factory for {s}?", "Where do we build {s}?"),
        held_out_questions=("In which city do we make {s}?", "Where does {s} come from?"),
    ),
    Attribute(
        name="launch",
        statements=(
            "{s} will be launched in {v}.",
            "The launch of {s} is planned for {v}.",
            "{v} is the launch date of {s}.",
            "Customers can buy {s} from {v}.",
            "{s} comes to market in {v}.",
        ),
        questions=("When will {s} be launched?", "What is the launch date of {s}?", "When can I buy {s}?"),
        held_out_questions=("When does {s} come out?", "What is the planned date for the launch of {s}?"),
    ),
    Attribute(
        name="material",
        statements=(
            "{s} is made of {v}.",
            "The body of {s} is {v}.",
            "{v} is the main material of {s}.",
            "We use {v} for {s}.",
            "The case of {s} consists of {v}.",
        ),
        questions=("What is {s} made of?", "What is the main material of {s}?", "What do we use for {s}?"),
        held_out_questions=("Which material is used for {s}?", "What material is the body of {s}?"),
    ),
)


_DRAWS: dict[str, Callable[[Random], str]] = {
    "lead": lambda random: f"{random.choice(_FIRST_NAMES)} {random.choice(_LAST_NAMES)}",
    "site": lambda random: random.choice(_CITIES),
    "launch": lambda random: f"{random.choice(_MONTHS)} {random.randint(2026, 2034)}",
    "material": lambda random: random.choice(_MATERIALS),
}
"""A value, by the name of the attribute."""


@dataclass(frozen=True)
class Fact:
    """What is true of a product."""

    subject: str
    attribute: Attribute
    value: str


@dataclass(frozen=True, kw_only=True)
class Company:
    """Products and the facts about them. `CompanyTask` asks for these."""

    name: str
    facts: tuple[Fact, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Its products, in order."""
        return tuple(dict.fromkeys(fact.subject for fact in self.facts))

    def documents(self, seed: int) -> Iterator[str]:
        """An endless stream of memos and pages of questions; every product comes up equally often."""
        random = Random(f"{self.name} documents {seed}")
        while True:
            for subject in random.sample(self.subjects, len(self.subjects)):
                facts = [fact for fact in self.facts if fact.subject == subject]
                random.shuffle(facts)
                write = random.choice((self._memo, self._questions_page))
                yield write(random, subject, facts)

    def divided(self, parts: int) -> tuple[Company, ...]:
        """As many companies of that name, each with its share of the products; they share no fact.

        Raises:
            ValueError: there are fewer products than parts.
        """
        if not 1 <= parts <= len(self.subjects):
            raise ValueError(f"{len(self.subjects)} products cannot be divided into {parts} parts")
        shares = [set(self.subjects[part::parts]) for part in range(parts)]
        return tuple(
            Company(name=self.name, facts=tuple(fact for fact in self.facts if fact.subject in share))
            for share in shares
        )

    def _memo(self, random: Random, subject: str, facts: Sequence[Fact]) -> str:
        sentences = [random.choice(f.attribute.statements).format(s=subject, v=f.value) for f in facts]
        return f"{self.name} memo about {subject}. " + " ".join(_capitalised(s) for s in sentences)

    def _questions_page(self, random: Random, subject: str, facts: Sequence[Fact]) -> str:
        pairs = [
            f"Q: {random.choice(f.attribute.questions).format(s=subject)}\nA: {_answer(random, f)}"
            for f in facts
        ]
        return f"{self.name} questions about {subject}.\n" + "\n".join(pairs)


def found_company(seed: int, *, products: int = 8) -> Company:
    """A company of that many products with one fact per attribute; no two products share a value.

    Raises:
        ValueError: there are fewer product names, or values of some attribute, than products.
    """
    random = Random(f"company {seed}")
    names = [start + end for start in _STARTS for end in _ENDS]
    most = min(len(_CITIES), len(_MATERIALS))
    if not 1 <= products <= most:
        raise ValueError(f"a company here has 1 to {most} products, not {products}")
    # No two names begin alike, or their first tokens would not tell them apart.
    starts = random.sample(_STARTS, min(products, len(_STARTS)))
    subjects = [next(n for n in random.sample(names, len(names)) if n.startswith(s)) for s in starts]
    while len(subjects) < products:
        subjects.append(random.choice([name for name in names if name not in subjects]))
    facts: list[Fact] = []
    for attribute in ATTRIBUTES:
        values: list[str] = []
        while len(values) < products:
            value = _DRAWS[attribute.name](random)
            if value not in values:
                values.append(value)
        facts += [Fact(s, attribute, v) for s, v in zip(subjects, values, strict=True)]
    facts.sort(key=lambda fact: subjects.index(fact.subject))
    return Company(name="Halden Works", facts=tuple(facts))


@dataclass(frozen=True, kw_only=True)
class CompanyTask:
    """Questions about a company's facts. Implements `rollouts.Task`."""

    company: Company
    name: str = "company"

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """An endless stream of questions in the phrasings that the documents use too."""
        random = Random(f"{self.name} train {seed}")
        while True:
            for fact in random.sample(self.company.facts, len(self.company.facts)):
                yield _problem(random.choice(fact.attribute.questions), fact)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` questions in other phrasings than the documents', spread over all facts.

        Raises:
            ValueError: there are fewer.
        """
        phrasings = max(len(fact.attribute.held_out_questions) for fact in self.company.facts)
        problems = [
            _problem(fact.attribute.held_out_questions[index], fact)
            for index in range(phrasings)
            for fact in self.company.facts
            if index < len(fact.attribute.held_out_questions)
        ]
        if len(problems) < count:
            raise ValueError(
                f"there are {len(problems)} held-out questions about {self.company.name}, not {count}"
            )
        return problems[:count]

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Right if the reply names the answer and no other value that the company has for such a thing.

        So a reply may be a whole sentence, but listing candidates earns nothing.
        """
        correct = self._named(problem.answer, reply) == {problem.answer}
        return Grade(reward=float(correct), correct=correct)

    def _named(self, answer: str, reply: str) -> set[str]:
        attributes = {fact.attribute.name for fact in self.company.facts if fact.value == answer}
        values = {fact.value for fact in self.company.facts if fact.attribute.name in attributes}
        return {value for value in values if _says(reply, value)}


def _says(reply: str, value: str) -> bool:
    """As whole words, in any case; how many blanks lie between them does not matter."""
    pattern = r"\s+".join(re.escape(word) for word in value.split())
    return re.search(rf"(?<!\w){pattern}(?!\w)", reply, re.IGNORECASE) is not None


def _problem(question: str, fact: Fact) -> Problem:
    message = Message(role="user", content=question.format(s=fact.subject))
    return Problem(messages=(message,), answer=fact.value)


def _answer(random: Random, fact: Fact) -> str:
    """In short, or as a sentence."""
    sentence = _capitalised(random.choice(fact.attribute.statements).format(s=fact.subject, v=fact.value))
    return random.choice((_capitalised(f"{fact.value}."), sentence))


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
