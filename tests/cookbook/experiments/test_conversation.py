"""What E3, E6 and E8 share, and their full-size data on tiny files of the same shape."""

import io
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cookbook.chat_prompts import ChatPrompts
from cookbook.company import found_company
from cookbook.experiments.base_models import made_models
from cookbook.experiments.clerk import FORMS, ClerkTask
from cookbook.experiments.command import run_seed
from cookbook.experiments.continual_learning.experiment import EXPERIMENT as E8
from cookbook.experiments.conversation import (
    ChatSetting,
    CompanySetting,
    documents_and_chat,
    questions_about,
)
from cookbook.experiments.personalisation.experiment import EXPERIMENT as E3
from cookbook.experiments.personalisation.experiment import START
from cookbook.experiments.results import load_results
from cookbook.experiments.self_distillation.experiment import EXPERIMENT as E6
from cookbook.renderers import Renderer
from tinkerlite import ServiceClient

COMPANY = found_company(0, products=4)


def chat_file(folder: Path) -> str:
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": f"Hi {n}"}], "source": "x"} for n in range(40)
    ]
    return written(folder / "tulu-3.jsonl", rows)


def ifeval_file(folder: Path) -> str:
    asked = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    return written(folder / "ifeval.jsonl", [{"key": n, "prompt": f"Write {n}.", **asked} for n in range(5)])


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_small_chat_is_generated_and_full_chat_comes_from_files(tmp_path: Path):
    assert isinstance(ChatSetting().prompts(), ClerkTask)
    chat = ChatSetting(chat_file=chat_file(tmp_path)).prompts()
    assert isinstance(chat, ChatPrompts)
    assert next(chat.training_problems(0)).messages[0]["content"].startswith("Hi ")


@pytest.mark.parametrize("experiment", [E3, E6, E8], ids=lambda experiment: experiment.name)
def test_full_size_data_goes_through_the_same_run(experiment: Any, tmp_path: Path):
    smoke = experiment.sizes["smoke"]
    chat = replace(smoke.chat, chat_file=chat_file(tmp_path), ifeval_file=ifeval_file(tmp_path), tested=3)
    on_files = replace(experiment, sizes={"smoke": replace(smoke, chat=chat)})
    models = made_models(on_files.models(on_files.sizes["smoke"]), tmp_path / "models")
    with ServiceClient(base_url=f"local://{','.join(models)}") as service:
        run_seed(on_files, "smoke", 0, service, models, tmp_path, Console(file=io.StringIO()))
    [result] = load_results(on_files, "smoke", tmp_path)
    assert result.of(START)[0]["behaviour_by_kind"].keys() == {"NoCommas"}


@pytest.mark.parametrize("experiment", [E3, E6, E8], ids=lambda experiment: experiment.name)
def test_full_size_settings_name_files_for_chat_and_test(experiment: Any):
    chat = experiment.sizes["full"].chat
    assert chat.chat_file.endswith(".jsonl")
    assert chat.ifeval_file.endswith(".jsonl")
    assert chat.tested == 541  # all of IFEval


def test_documents_alone_need_no_chat(tokenizer: Any, renderer: Renderer):
    stream = documents_and_chat(COMPANY, [], 1.0, tokenizer, seed=0)
    assert all("Halden Works" in renderer.text(example.tokens) for example in islice(stream, 20))


def test_every_held_out_question_is_asked():
    problems = questions_about(COMPANY)
    assert len(problems) == 2 * len(COMPANY.facts)
    assert len({problem.messages[0]["content"] for problem in problems}) == len(problems)


def test_the_small_test_has_every_form_equally_often():
    assert ChatSetting().tested % len(FORMS) == 0


def test_a_company_has_products_with_four_facts_or_parts_with_one_for_every_round():
    products = CompanySetting(kind="products", products=2, answer_tokens=8).founded(0, rounds=3)
    parts = CompanySetting(kind="parts", products=2, answer_tokens=8).founded(0, rounds=3)
    assert (len(products.subjects), len(products.facts)) == (6, 24)
    assert (len(parts.subjects), len(parts.facts)) == (6, 6)
