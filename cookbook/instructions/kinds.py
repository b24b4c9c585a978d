"""Ways to ask: for each kind of instruction, how a prompt words it and which check goes with it.

Bounds are those of short replies. Kinds that touch the same side of a reply (its case, its length, its
layout, its ends, its words) are never asked of one reply together, since they could contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from cookbook.instructions import case, content, ends, form, length
from cookbook.instructions.instruction import Instruction

Draw = Callable[[Random, str], tuple[str, Instruction]]
"""A source of chance and the request, to an instruction in words and its check."""


@dataclass(frozen=True)
class Kind:
    """A kind of instruction."""

    name: str
    draw: Draw
    touches: frozenset[str]
    """Sides of a reply; two kinds that share none can be asked for together."""


# fmt: off
WORDS = (
    "river", "yellow", "morning", "simple", "garden", "music", "window", "strong", "people", "water", "quiet",
    "happy", "summer", "market", "family", "bright", "journey", "history", "winter", "friend",
)
OPENINGS = ("Well,", "Once upon a time", "Here is", "Dear reader", "Of course", "In short", "My friend")
ENDINGS = ("The end.", "That is all.", "Thank you for reading.", "Have a nice day.", "Good luck!")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
# fmt: on


def _plain(instruction: Instruction, *wordings: str) -> Draw:
    return lambda random, _: (random.choice(wordings), instruction)


def _numbered(
    make: Callable[[int], Instruction], low: int, high: int, *wordings: str, in_words: bool = False
) -> Draw:
    def draw(random: Random, _: str) -> tuple[str, Instruction]:
        n = random.randint(low, high)
        return random.choice(wordings).format(n=NUMBERS[n] if in_words else n), make(n)

    return draw


def _worded(make: Callable[[str], Instruction], words: tuple[str, ...], *wordings: str) -> Draw:
    def draw(random: Random, _: str) -> tuple[str, Instruction]:
        word = random.choice(words)
        return random.choice(wordings).format(word=word), make(word)

    return draw


def _two_keywords(random: Random, _: str) -> tuple[str, Instruction]:
    a, b = random.sample(WORDS, 2)
    return f'Include the words "{a}" and "{b}".', content.Keywords((a, b))


def _keyword_often(random: Random, _: str) -> tuple[str, Instruction]:
    word, n = random.choice(WORDS), random.randint(2, 3)
    text = f'Use the word "{word}" at least {NUMBERS[n]} times.'
    return text, content.KeywordFrequency(word, n)


def _repeat(_: Random, request: str) -> tuple[str, Instruction]:
    text = "First repeat the request word for word, then answer it; do not repeat this sentence."
    return text, content.RepeatedPrompt(request)


def _kind(name: str, touches: str, draw: Draw) -> tuple[str, Kind]:
    return name, Kind(name, draw, frozenset(touches.split()))


KINDS: dict[str, Kind] = dict(
    [
        _kind(
            "lowercase",
            "case",
            _plain(
                case.Lowercase(),
                "Use only lowercase letters.",
                "Write in all lowercase, with no capital letters.",
            ),
        ),
        _kind(
            "uppercase",
            "case",
            _plain(case.Uppercase(), "Use only capital letters.", "WRITE IN ALL CAPITAL LETTERS."),
        ),
        _kind(
            "capital-words",
            "case",
            _numbered(case.CapitalWords, 2, 3, "Write at least {n} words in ALL CAPITALS.", in_words=True),
        ),
        _kind(
            "no-commas",
            "commas",
            _plain(case.NoCommas(), "Do not use any commas.", "Your reply must not contain commas."),
        ),
        _kind(
            "few-words",
            "length",
            _numbered(
                lambda n: length.WordCount(n, "less than"),
                10,
                30,
                "Use less than {n} words.",
                "Your reply must have fewer than {n} words.",
            ),
        ),
        _kind("many-words", "length", _numbered(length.WordCount, 25, 35, "Use at least {n} words.")),
        _kind(
            "one-sentence",
            "length layout",
            _plain(
                length.SentenceCount(1, "exactly"),
                "Answer in exactly one sentence.",
                "Reply with a single sentence.",
            ),
        ),
        _kind(
            "few-sentences",
            "length",
            _numbered(
                lambda n: length.SentenceCount(n + 1, "less than"),
                2,
                3,
                "Use at most {n} sentences.",
                in_words=True,
            ),
        ),
        _kind(
            "sentences",
            "length layout",
            _numbered(
                lambda n: length.SentenceCount(n, "exactly"),
                2,
                3,
                "Write exactly {n} sentences.",
                in_words=True,
            ),
        ),
        _kind(
            "paragraphs",
            "layout length",
            _numbered(
                length.ParagraphCount,
                2,
                2,
                "Write exactly {n} short paragraphs with *** between them.",
                in_words=True,
            ),
        ),
        _kind(
            "paragraph-opening",
            "layout length",
            _worded(
                lambda word: length.ParagraphOpening(2, 2, word),
                WORDS,
                'Write two paragraphs with an empty line between. Begin the second with the word "{word}".',
            ),
        ),
        _kind(
            "bullets",
            "layout",
            _numbered(
                form.BulletCount,
                2,
                4,
                "Write exactly {n} bullet points that begin with *.",
                "Answer with a list of exactly {n} items, each on a line that begins with -.",
                in_words=True,
            ),
        ),
        _kind(
            "numbered",
            "layout",
            _numbered(
                form.NumberedCount,
                2,
                4,
                "Answer with a numbered list of exactly {n} short items.",
                in_words=True,
            ),
        ),
        _kind(
            "highlights",
            "asterisks",
            _numbered(
                form.Highlights,
                1,
                2,
                "Highlight at least {n} words with asterisks, *like this*.",
                in_words=True,
            ),
        ),
        _kind(
            "sections",
            "layout length",
            _numbered(
                form.Sections,
                2,
                2,
                "Write {n} short sections with the headings Section 1 and Section 2.",
                in_words=True,
            ),
        ),
        _kind(
            "json",
            "layout case ends",
            _plain(form.Json(), "Answer in JSON and nothing else.", "Your whole reply must be valid JSON."),
        ),
        _kind(
            "title",
            "title ends",
            _plain(form.Title(), "Begin with a title in double angular brackets, such as <<my title>>."),
        ),
        _kind(
            "two-replies",
            "layout length",
            _plain(form.TwoReplies(), "Give two different short replies with ****** between them."),
        ),
        _kind(
            "yes-or-no",
            "length layout words ends",
            _plain(
                form.OnlyOneOf(("yes", "no", "maybe")),
                "Is this a good topic? Only answer yes or no or maybe.",
            ),
        ),
        _kind(
            "keyword",
            "words",
            _worded(
                lambda word: content.Keywords((word,)),
                WORDS,
                'Include the word "{word}".',
                'Use the word "{word}".',
            ),
        ),
        _kind("two-keywords", "words", _two_keywords),
        _kind("keyword-often", "words", _keyword_often),
        _kind(
            "forbidden-word",
            "words",
            _worded(
                lambda word: content.ForbiddenWords((word,)),
                ("the", "and", "is", "are", "of"),
                'Do not use the word "{word}".',
            ),
        ),
        _kind(
            "letter",
            "words",
            _worded(
                lambda sign: content.LetterFrequency(sign, 2),
                ("!", "?"),
                "Use the sign {word} at least two times.",
            ),
        ),
        _kind(
            "placeholders",
            "words",
            _numbered(
                content.Placeholders,
                1,
                2,
                "Include at least {n} placeholders in square brackets, such as [name].",
                in_words=True,
            ),
        ),
        _kind(
            "postscript",
            "ends",
            _plain(content.Postscript(), "Add a postscript at the end that starts with P.S."),
        ),
        _kind("repeat", "ends case length", _repeat),
        _kind(
            "opening",
            "ends",
            _worded(
                ends.Opening, OPENINGS, 'Begin your reply with "{word}"', 'Start with the words "{word}"'
            ),
        ),
        _kind(
            "ending",
            "ends",
            _worded(
                ends.Ending, ENDINGS, 'End your reply with "{word}"', 'Finish with the exact words "{word}"'
            ),
        ),
        _kind(
            "quotation", "ends", _plain(ends.Quotation(), "Put your whole reply in double quotation marks.")
        ),
        _kind("german", "case words", _plain(content.Language("de"), "Answer in German.")),
    ]
)
"""All kinds that prompts are generated for, by name."""


def kinds(*names: str) -> tuple[Kind, ...]:
    """Kinds by name.

    Raises:
        ValueError: there is no such kind.
    """
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"no instructions of kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return tuple(KINDS[name] for name in names)
