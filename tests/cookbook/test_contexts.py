from cookbook.contexts import instructed, shown_examples, told_the_answer
from cookbook.renderers import Message
from cookbook.rollouts import Problem
from tests.cookbook.groups import PROBLEM

FEW = Problem(
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="2 + 2 =")),
    answer="4",
)


def test_an_instruction_comes_before_the_problem():
    assert list(instructed("Answer in digits.")(PROBLEM)) == [
        {"role": "system", "content": "Answer in digits."},
        {"role": "user", "content": "1 + 1 ="},
    ]


def test_examples_are_earlier_turns_right_before_the_question():
    turns = [(m["role"], m["content"]) for m in shown_examples([PROBLEM])(FEW)]
    assert turns == [
        ("system", "Be brief."),
        ("user", "1 + 1 ="),
        ("assistant", "2"),
        ("user", "2 + 2 ="),
    ]


def test_the_answer_stands_behind_the_question_and_nothing_else_changes():
    assert list(told_the_answer("It is {answer}!")(FEW)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2 =\nIt is 4!"},
    ]
