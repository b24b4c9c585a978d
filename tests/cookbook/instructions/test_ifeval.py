"""The benchmark's file, on local files of the same shape."""

import json
from pathlib import Path
from typing import Any

import pytest

from cookbook.instructions.case import CapitalWords, NoCommas
from cookbook.instructions.content import Keywords, LetterFrequency, RepeatedPrompt
from cookbook.instructions.form import Sections
from cookbook.instructions.ifeval import INSTRUCTIONS, BenchmarkFileError, load_ifeval
from cookbook.instructions.length import ParagraphOpening, WordCount

ARGUMENTS: dict[str, dict[str, Any]] = {
    "keywords:existence": {"keywords": ["red", "car"]},
    "keywords:frequency": {"keyword": "car", "frequency": 2, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["red"]},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 2, "let_relation": "less than"},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "less than"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 20, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 2,
        "nth_paragraph": 1,
        "first_word": "rivers",
    },
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:multiple_sections": {"section_spliter": "PART", "num_sections": 2},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say hello."},
    "startend:end_checker": {"end_phrase": "The end."},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "less than"},
}
"""By the names in the file; instructions without arguments are not listed."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(prompt: str, *names: str, nulls: bool = False) -> dict[str, Any]:
    every = {key: None for arguments in ARGUMENTS.values() for key in arguments} if nulls else {}
    kwargs = [{**every, **ARGUMENTS.get(name, {})} for name in names]
    return {"key": 1, "prompt": prompt, "instruction_id_list": list(names), "kwargs": kwargs}


@pytest.mark.parametrize("nulls", [False, True], ids=["original", "hub copy"])
def test_every_instruction_of_the_benchmark_is_read_with_its_arguments(tmp_path: Path, nulls: bool):
    file = write(tmp_path / "input_data.jsonl", [row("Write.", *INSTRUCTIONS, nulls=nulls)])
    [problem] = load_ifeval(file)
    assert len(problem.instructions) == len(INSTRUCTIONS) == 25
    for expected in (
        Keywords(("red", "car")),
        LetterFrequency("q", 2, "less than"),
        WordCount(20, "at least"),
        ParagraphOpening(paragraphs=2, nth=1, word="rivers"),
        Sections(2, "PART"),
        RepeatedPrompt("Say hello."),
        CapitalWords(2, "less than"),
        NoCommas(),
    ):
        assert expected in problem.instructions


def test_prompts_come_in_the_files_order_up_to_a_limit(tmp_path: Path):
    file = write(tmp_path / "data.jsonl", [row(f"Prompt {n}", "punctuation:no_comma") for n in range(3)])
    assert [p.messages[0]["content"] for p in load_ifeval(file)] == ["Prompt 0", "Prompt 1", "Prompt 2"]
    assert len(load_ifeval(file, limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2 is not of IFEval's shape"),
        (json.dumps({"prompt": "x"}), "instruction_id_list"),
        (json.dumps(row("x", "style:haiku")), "no such instruction 'style:haiku'"),
        (json.dumps(row("x", "startend:end_checker") | {"kwargs": [{}]}), "end_phrase"),
        (json.dumps(row("x", "punctuation:no_comma") | {"kwargs": []}), "shorter"),
    ],
)
def test_a_line_of_another_shape_is_named(tmp_path: Path, line: str, message: str):
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps(row('fine', 'punctuation:no_comma'))}\n{line}\n", encoding="utf-8")
    with pytest.raises(BenchmarkFileError, match=message):
        load_ifeval(file)


def test_a_file_that_is_not_there_is_missed_with_where_it_comes_from(tmp_path: Path):
    with pytest.raises(BenchmarkFileError, match=r"no file .*none.jsonl: cookbook.instructions.ifeval says"):
        load_ifeval(tmp_path / "none.jsonl")
