"""Each check on replies that follow and on replies that do not, edge cases among them."""

from __future__ import annotations

import pytest

from cookbook.instructions.case import CapitalWords, Lowercase, NoCommas, Uppercase
from cookbook.instructions.content import (
    ForbiddenWords,
    KeywordFrequency,
    Keywords,
    Language,
    LetterFrequency,
    Placeholders,
    Postscript,
    RepeatedPrompt,
)
from cookbook.instructions.ends import Ending, Opening, Quotation
from cookbook.instructions.form import (
    BulletCount,
    Highlights,
    Json,
    NumberedCount,
    OneOf,
    OnlyOneOf,
    Sections,
    Title,
    TwoReplies,
)
from cookbook.instructions.instruction import Instruction, holds
from cookbook.instructions.length import ParagraphCount, ParagraphOpening, SentenceCount, WordCount
from cookbook.instructions.texts import bullets, sentences, words

FOLLOWED: list[tuple[Instruction, list[str]]] = [
    (WordCount(3), ["one two three", "one, two - three! four", "don't go"]),
    (WordCount(3, "less than"), ["one two", "", "- * -"]),
    (SentenceCount(2, "exactly"), ["One. Two!", "Is it? it is.", 'He said "Stop!" and left. She stayed.']),
    (
        SentenceCount(1, "exactly"),
        ["Dr. Lee met J. Doe at 3.5 km.", "no mark at the end", "Well... perhaps so."],
    ),
    (SentenceCount(3, "less than"), ["One. Two.", "1. Apples\n2. Pears\n3. Plums"]),
    (ParagraphCount(2), ["One.\n\n***\n\nTwo.", "One.***Two.", "***\nOne.\n***\nTwo.\n***"]),
    (
        ParagraphOpening(2, 2, "however"),
        ["One.\n\nHowever, two.", 'One.\n\n\n"However" it is.', "One.\n \n**However** it is."],
    ),
    (Keywords(("car", "red")), ["The RED car.", "Scarred cars"]),
    (KeywordFrequency("win", 2), ["Win and window", "win win win"]),
    (KeywordFrequency("win", 2, "less than"), ["A win.", "nothing"]),
    (ForbiddenWords(("the", "a")), ["Other cats there", "THEN", "nothing"]),
    (LetterFrequency("!", 2), ["Oh! Oh!", "!!!"]),
    (LetterFrequency("e", 2, "less than"), ["Entry", "no"]),
    (Placeholders(2), ["Dear [name], at [street and number]", "[a][b][c]"]),
    (Postscript("P.S."), ["Bye.\nP.S. Write soon.", "Bye. p. s. write", "Bye.\nPS: write", "P.S.I know."]),
    (Postscript("P.P.S"), ["Bye.\nP.P.S. More.", "pps more"]),
    (RepeatedPrompt("Say hello."), ["Say hello. Hello!", "  say HELLO. Hello", "Say hello."]),
    (Language("de"), ["Das Wetter ist heute sehr schön, und wir gehen spazieren."]),
    (Language("fr"), ["Il fait très beau aujourd'hui et nous allons au marché."]),
    (BulletCount(2), ["* One\n* Two", "Here:\n- One\n  - Two\n", "*One\n*Two", "**Fruit**\n- One\n- Two"]),
    (NumberedCount(2), ["1. One\n2. Two", "Here:\n1) One\n 2) Two"]),
    (Highlights(2), ["*One* and *two*", "**One** and *two*", "***both*** and *one*"]),
    (Sections(2, "Section"), ["Section 1\nA\nSection 2\nB", "Section1: A. Section 2: B. Section 3: C."]),
    (Json(), ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n[]\n```", ' "text" ']),
    (Title(), ["<<Rivers>>\nThey flow.", "They flow. << a title >>"]),
    (OneOf(("My answer is yes.", "My answer is no.")), ["My answer is no.", "Well. My answer is yes. Bye."]),
    (OnlyOneOf(("yes", "no")), ["Yes", " no. ", "NO"]),
    (TwoReplies(), ["One.\n******\nTwo.", "One. ****** Two. ******"]),
    (Opening("Dear reader"), ["Dear reader, hello", ' "dear READER"']),
    (Ending("The end."), ["It is over. the end.", 'He said "The end."', "The end. \n"]),
    (Quotation(), ['"All of it."', ' "All" and "some" ']),
    (Uppercase(), ["ALL OF IT, 100%!", "Ü"]),
    (Lowercase(), ["all of it, 100%!", "ß"]),
    (CapitalWords(2), ["GO NOW please", "I say YES", "A-B"]),
    (CapitalWords(2, "less than"), ["GO now", "nothing"]),
    (NoCommas(), ["One; two. Three", ""]),
]

BROKEN: list[tuple[Instruction, list[str]]] = [
    (WordCount(3), ["one two", "", "- - - -"]),
    (WordCount(3, "less than"), ["one two three"]),
    (SentenceCount(2, "exactly"), ["One.", "One. Two. Three.", "Is it? It is. Yes."]),
    (SentenceCount(1, "exactly"), ["all lowercase. two of them.", "Heading\n\nA sentence.", "", "..."]),
    (SentenceCount(3, "less than"), ["One. Two. Three", "We saw a U.F.O. It left! Then? Nothing."]),
    (ParagraphCount(2), ["One.\n\nTwo.", "One.\n***\n\n***\nTwo.", "One.", ""]),
    (
        ParagraphOpening(2, 2, "however"),
        ["However.\n\nTwo.", "One.\nHowever, two.", "One.\n\nTwo.\n\nHowever."],
    ),
    (ParagraphOpening(2, 3, "however"), ["One.\n\nHowever."]),
    (Keywords(("car", "red")), ["The car.", "", "c a r red"]),
    (KeywordFrequency("win", 2), ["Win", ""]),
    (KeywordFrequency("win", 2, "less than"), ["Winning windows"]),
    (ForbiddenWords(("the", "a")), ["The end", "such a day", "(a)", "in THE-end"]),
    (LetterFrequency("!", 2), ["Oh!", ""]),
    (LetterFrequency("e", 2, "less than"), ["Eve"]),
    (Placeholders(2), ["Dear [name]", "[] []", "[a\nb] [c]"]),
    (Postscript("P.S."), ["Bye.", "P.S.", "the tops of trees", "P.P.S. More.", "psalms"]),
    (Postscript("P.P.S"), ["P.S. More."]),
    (RepeatedPrompt("Say hello."), ["Hello! Say hello.", "Say hi.", ""]),
    (Language("de"), ["The weather is fine today and we are going for a walk.", "123 456", ""]),
    (BulletCount(2), ["* One", "* One\n* Two\n* Three", "One\nTwo", "**One**\n**Two**", "*\n*"]),
    (NumberedCount(2), ["1. One", "1 One\n2 Two", "One\nTwo", "3.5 km\n"[:3]]),
    (Highlights(2), ["*One*", "** ** and * *", "*One\ntwo* *", "* a bullet\n* another"]),
    (
        Sections(2, "Section"),
        ["Section 1", "section 1 section 2", "Section one. Section two.", "Subsection 1 2"],
    ),
    (Json(), ["{'a': 1}", 'Here: {"a": 1}', "", '{"a": 1} ok', "```json\n{\n```", "[" * 100_000]),
    (Title(), ["Rivers", "<Rivers>", "<<>>", "<< >>", "<<a\nb>>"]),
    (OneOf(("My answer is yes.", "My answer is no.")), ["Yes.", "my answer is yes.", ""]),
    (OnlyOneOf(("yes", "no")), ["Yes, it is.", "yes or no", "", "maybe"]),
    (TwoReplies(), ["One.", "One. ****** One.", "A ****** B ****** C", "A ************ B", "A *** B"]),
    (Opening("Dear reader"), ["Hello, dear reader", ""]),
    (Ending("The end."), ["The end. Or not?", "The end", ""]),
    (Quotation(), ['"Some" of it', "All", '"', '""', "'all'"]),
    (Uppercase(), ["Most OF IT", "123", ""]),
    (Lowercase(), ["most Of it", "123", ""]),
    (CapitalWords(2), ["GO now", "Go Now"]),
    (CapitalWords(2, "less than"), ["GO NOW"]),
    (NoCommas(), ["One, two", "1,000", "一，二"]),
]


def each(cases: list[tuple[Instruction, list[str]]]) -> list[tuple[Instruction, str]]:
    return [(instruction, reply) for instruction, replies in cases for reply in replies]


@pytest.mark.parametrize(("instruction", "reply"), each(FOLLOWED), ids=repr)
def test_a_reply_that_does_what_was_asked_passes(instruction: Instruction, reply: str):
    assert instruction.is_followed(reply)


@pytest.mark.parametrize(("instruction", "reply"), each(BROKEN), ids=lambda value: repr(value)[:60])
def test_a_reply_that_does_not_fails(instruction: Instruction, reply: str):
    assert not instruction.is_followed(reply)


def test_every_check_is_tested_both_ways():
    checks = {type(instruction) for instruction, _ in FOLLOWED}
    assert checks == {type(instruction) for instruction, _ in BROKEN}
    assert len(checks) >= 25


def test_a_relation_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'at least', 'less than', 'exactly'"):
        holds(1, "more than", 0)  # type: ignore[arg-type]


def test_words_are_runs_of_letters_and_digits():
    assert words("Don't stop_here - 3.5!") == ["Don", "t", "stop_here", "3", "5"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One. Two", ["One.", "Two"]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ('"Go!" he said. "Now."', ['"Go!" he said.', '"Now."']),
        ("So am I. Bye.", ["So am I.", "Bye."]),
        ("Title\n\nA line\nof text.", ["Title", "A line\nof text."]),
        ("Mr. T. Smith, e.g. him. Yes.", ["Mr. T. Smith, e.g. him.", "Yes."]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, expected: list[str]):
    assert sentences(text) == expected


def test_bold_text_is_no_bullet():
    assert bullets("**Bold**\n* item\n  - item\n*item") == 3
