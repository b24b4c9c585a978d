"""The IFEval benchmark, from its own file (`input_data.jsonl`; the hub's copy is google/IFEval).

One JSON object a line: `key`, `prompt`, `instruction_id_list`, and `kwargs`, one mapping per
instruction, in which the hub's copy also lists the arguments of all others, as null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cookbook.instructions import case, content, ends, form, length
from cookbook.instructions.instruction import Instruction
from cookbook.instructions.task import InstructedProblem
from cookbook.renderers import Message

Arguments = Mapping[str, Any]


def _many(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


INSTRUCTIONS: dict[str, Callable[[Arguments], Instruction]] = {
    "keywords:existence": lambda a: content.Keywords(_many(a["keywords"])),
    "keywords:frequency": lambda a: content.KeywordFrequency(a["keyword"], a["frequency"], a["relation"]),
    "keywords:forbidden_words": lambda a: content.ForbiddenWords(_many(a["forbidden_words"])),
    "keywords:letter_frequency": lambda a: content.LetterFrequency(
        a["letter"], a["let_frequency"], a["let_relation"]
    ),
    "language:response_language": lambda a: content.Language(a["language"]),
    "length_constraints:number_sentences": lambda a: length.SentenceCount(a["num_sentences"], a["relation"]),
    "length_constraints:number_paragraphs": lambda a: length.ParagraphCount(a["num_paragraphs"]),
    "length_constraints:number_words": lambda a: length.WordCount(a["num_words"], a["relation"]),
    "length_constraints:nth_paragraph_first_word": lambda a: length.ParagraphOpening(
        a["num_paragraphs"], a["nth_paragraph"], a["first_word"]
    ),
    "detectable_content:number_placeholders": lambda a: content.Placeholders(a["num_placeholders"]),
    "detectable_content:postscript": lambda a: content.Postscript(a["postscript_marker"]),
    "detectable_format:number_bullet_lists": lambda a: form.BulletCount(a["num_bullets"]),
    "detectable_format:constrained_response": lambda a: form.OneOf(
        ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "detectable_format:number_highlighted_sections": lambda a: form.Highlights(a["num_highlights"]),
    "detectable_format:multiple_sections": lambda a: form.Sections(a["num_sections"], a["section_spliter"]),
    "detectable_format:json_format": lambda a: form.Json(),
    "detectable_format:title": lambda a: form.Title(),
    "combination:two_responses": lambda a: form.TwoReplies(),
    "combination:repeat_prompt": lambda a: content.RepeatedPrompt(a["prompt_to_repeat"]),
    "startend:end_checker": lambda a: ends.Ending(a["end_phrase"]),
    "startend:quotation": lambda a: ends.Quotation(),
    "change_case:capital_word_frequency": lambda a: case.CapitalWords(
        a["capital_frequency"], a["capital_relation"]
    ),
    "change_case:english_capital": lambda a: case.Uppercase(),
    "change_case:english_lowercase": lambda a: case.Lowercase(),
    "punctuation:no_comma": lambda a: case.NoCommas(),
}
"""The 25 instructions of the benchmark, by the names in its file."""


class BenchmarkFileError(ValueError):
    """No file, or a line that is not of IFEval's shape; the message names them."""


def load_ifeval(path: Path, *, limit: int | None = None) -> list[InstructedProblem]:
    """The prompts of the benchmark, in the file's order.

    Args:
        path: a local copy of `input_data.jsonl`.
        limit: only so many from the start.

    Raises:
        BenchmarkFileError: there is no such file, or a line cannot be read or names an unknown instruction.
    """
    if not path.is_file():
        raise BenchmarkFileError(f"there is no file {path}: {__name__} says where it comes from")
    problems: list[InstructedProblem] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(problems) == limit:
                break
            if line.strip():
                problems.append(_problem(line, f"{path}, line {number}"))
    return problems


def _problem(line: str, where: str) -> InstructedProblem:
    try:
        row = json.loads(line)
        names, arguments = row["instruction_id_list"], row["kwargs"]
        instructions = tuple(_instruction(n, a or {}) for n, a in zip(names, arguments, strict=True))
        message = Message(role="user", content=row["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkFileError(f"{where} is not of IFEval's shape: {error!r}") from error
    return InstructedProblem(messages=(message,), answer="", instructions=instructions)


def _instruction(name: str, arguments: Arguments) -> Instruction:
    if name not in INSTRUCTIONS:
        raise ValueError(f"no such instruction {name!r}; those known are {', '.join(INSTRUCTIONS)}")
    return INSTRUCTIONS[name]({key: value for key, value in arguments.items() if value is not None})
