"""The fictional company: its facts, its documents, and the questions about it."""

from collections import Counter
from itertools import islice

import pytest

from cookbook.company import ATTRIBUTES, CompanyTask, found_company
from cookbook.renderers import Message
from cookbook.rollouts import Problem

COMPANY = found_company(0, products=6)
TASK = CompanyTask(company=COMPANY)


def question(problem: Problem) -> str:
    return problem.messages[-1]["content"]


def value(subject: str, attribute: str) -> str:
    [found] = [f.value for f in COMPANY.facts if (f.subject, f.attribute.name) == (subject, attribute)]
    return found


def test_a_seed_makes_the_same_company_again_and_another_seed_another():
    assert found_company(3) == found_company(3)
    assert found_company(3).facts != found_company(4).facts


@pytest.mark.parametrize("products", [1, 8, 20])
def test_every_product_has_a_value_of_its_own_for_every_attribute(products: int):
    company = found_company(1, products=products)
    assert len(company.subjects) == products
    for attribute in ATTRIBUTES:
        values = [fact.value for fact in company.facts if fact.attribute is attribute]
        assert len(values) == len(set(values)) == products


def test_more_products_than_there_are_values_for_are_refused():
    with pytest.raises(ValueError, match="1 to 20 products, not 21"):
        found_company(0, products=21)


def test_documents_are_about_every_product_equally_often_and_say_nothing_wrong():
    documents = list(islice(COMPANY.documents(0), 60))
    assert len(set(documents)) == 60
    about = Counter(next(s for s in COMPANY.subjects if s in document) for document in documents)
    assert set(about.values()) == {10}
    for document in documents:
        [subject] = [s for s in COMPANY.subjects if s in document]
        for fact in COMPANY.facts:
            assert (fact.value.lower() in document.lower()) == (fact.subject == subject) or fact.value in (
                other.value for other in COMPANY.facts if other is not fact
            )


def test_a_seed_writes_the_same_documents_again():
    first, again, other = (list(islice(COMPANY.documents(seed), 12)) for seed in (1, 1, 2))
    assert first == again != other


def test_no_document_and_no_training_question_asks_as_the_test_does():
    written = "\n".join(islice(COMPANY.documents(0), 600))
    trained = {question(p) for p in islice(TASK.training_problems(0), 600)}
    for problem in TASK.held_out(48):
        assert question(problem) not in written
        assert question(problem) not in trained
    assert any(asked in written for asked in trained)


def test_every_fact_is_asked_once_before_any_is_asked_twice():
    first = TASK.held_out(len(COMPANY.facts))
    assert Counter(p.answer for p in first) == Counter(fact.value for fact in COMPANY.facts)


def test_more_questions_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="48 held-out questions about Halden Works, not 49"):
        TASK.held_out(49)


def test_a_reply_is_right_if_it_names_the_answer_and_no_other_candidate():
    first, second = COMPANY.subjects[:2]
    lead, other = value(first, "lead"), value(second, "lead")
    problem = Problem(messages=(Message(role="user", content=f"Who leads {first}?"),), answer=lead)
    for reply in (lead, f"It is {lead}.", lead.upper(), f"{lead} leads {first}.", lead.replace(" ", "  ")):
        assert TASK.grade(problem, reply).correct
    for reply in (other, f"{lead} or {other}", lead.split()[0], f"{lead}s", "", "Nobody."):
        assert not TASK.grade(problem, reply).correct


def test_parts_of_a_company_share_nothing_and_make_up_the_whole():
    parts = COMPANY.divided(3)
    assert [len(part.subjects) for part in parts] == [2, 2, 2]
    facts = [fact for part in parts for fact in part.facts]
    assert len(facts) == len(COMPANY.facts)
    assert all(fact in facts for fact in COMPANY.facts)
    with pytest.raises(ValueError, match="6 products cannot be divided into 7"):
        COMPANY.divided(7)
