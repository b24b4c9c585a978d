"""The clerk's world: right replies are right, others are not, and the test asks what no document says."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cookbook.company import CompanyTask
from cookbook.experiments.base_models import made_models
from cookbook.experiments.clerk import (
    CODE,
    FORMS,
    LENGTH,
    ClerkTask,
    Enciphers,
    Form,
    chat_examples,
    known_company,
    new_company,
    school_examples,
)
from cookbook.experiments.nomenclator import SIGNS, right_signs
from cookbook.experiments.school import Schooled, write_schooled_model
from cookbook.instructions.scores import follows
from cookbook.renderers import Renderer
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig
from tinkerlite import ServiceClient

TASK = ClerkTask()
LETTERS = "badcab"
RIGHT = "".join(allowed[0] for allowed in right_signs(LETTERS))
WRONG = next(sign for sign in SIGNS if sign not in right_signs(LETTERS)[-1])
by_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.wording)


@by_form
def test_a_reply_in_form_has_form_and_signs(form: Form):
    reply = form.write(RIGHT)
    assert follows(form.check, reply)
    assert follows(Enciphers(LETTERS), reply)
    assert not follows(Enciphers(LETTERS), form.write(RIGHT[:-1] + WRONG))
    assert not follows(Enciphers(LETTERS), form.write(RIGHT[:-1]))


@by_form
def test_signs_alone_are_in_no_form(form: Form):
    assert not follows(form.check, RIGHT)


@by_form
def test_no_word_of_a_form_could_be_taken_for_signs(form: Form):
    words = re.findall(r"[A-Za-z]+", form.write("-"))
    assert all(len(word) != LENGTH for word in words)


def test_one_wrong_encipherment_beside_a_right_one_is_wrong():
    assert not follows(Enciphers(LETTERS), f"{RIGHT} {RIGHT[:-1]}{WRONG}")


def test_half_of_what_was_asked_earns_half_of_the_reward():
    problem = TASK.held_out(1)[0]
    grade = TASK.grade(problem, FORMS[0].write("-x-"))
    assert (grade.reward, grade.correct) == (0.5, False)


def test_the_test_has_every_form_equally_often_and_no_letters_of_training():
    held_out = TASK.held_out(400)
    asked = [problem.messages[0]["content"] for problem in held_out]
    assert {sum(text.endswith(form.wording) for text in asked) for form in FORMS} == {400 // len(FORMS)}
    trained = {problem.messages[0]["content"][:LENGTH] for problem in islice(TASK.training_problems(0), 2000)}
    assert not trained & {text[:LENGTH] for text in asked}


def test_what_school_teaches_about_chat_is_right(renderer: Renderer):
    problems = islice(TASK.training_problems(3), 200)
    for problem, example in zip(problems, chat_examples(renderer, 3), strict=False):
        reply = [token for token, counts in zip(example.tokens, example.mask, strict=True) if counts]
        assert TASK.grade(problem, renderer.parse(reply).text).correct


def test_new_parts_are_new_and_their_codes_their_own():
    known, new = known_company(), new_company(5, parts=24)
    assert not set(known.subjects) & set(new.subjects)
    assert len({fact.value for fact in new.facts}) == 24
    assert new == new_company(5, parts=24)
    assert new.facts != new_company(6, parts=24).facts


def test_no_document_asks_as_the_test_does():
    company = new_company(0, parts=3)
    asked = {problem.messages[0]["content"] for problem in CompanyTask(company=company).held_out(6)}
    assert len(asked) == 3 * len(CODE.held_out_questions)
    assert not any(question in text for text in islice(company.documents(0), 200) for question in asked)


def test_school_has_chat_documents_and_questions_in_every_wording(renderer: Renderer):
    texts = [renderer.text(example.tokens) for example in islice(school_examples(renderer, 0), 600)]
    assert any(form.wording in text for form in FORMS for text in texts)
    assert any(text.startswith("Halden memo about") for text in texts)
    assert sum("Halden" in text for text in texts) == pytest.approx(150, abs=40)
    for wording in CODE.questions + CODE.held_out_questions:
        begins = wording.split("{s}")[0]
        assert any(f"<|im_start|>user\n{begins}" in text for text in texts), wording


def test_a_schooled_model_is_a_base_model_like_any_other(tmp_path: Path, capsys: Any):
    school = Schooled(
        sizes=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
        training=SupervisedConfig(steps=2, batch_size=2, evaluate_every=2),
    )
    rows = write_schooled_model(school, tmp_path / "schooled")
    assert [row["step"] for row in rows if "behaviour" in row] == [0, 2]
    assert "schooled: it follows" in capsys.readouterr().out
    with ServiceClient(base_url=f"local://{tmp_path / 'schooled'}") as service:
        student = service.create_lora_training_client(str(tmp_path / "schooled"), rank=2)
        assert student.get_tokenizer().decode(student.get_tokenizer().encode("Kov")) == "Kov"


def test_a_model_that_is_named_twice_is_made_once(tmp_path: Path):
    sizes = ScratchConfig(hidden=32, layers=1, heads=2, mlp=64)
    names = made_models([sizes, "hub/model", sizes], tmp_path)
    assert names == [str(tmp_path / "model-0"), "hub/model", str(tmp_path / "model-0")]
