import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cookbook.renderers import (
    Message,
    Renderer,
    RendererError,
    Segment,
    chat_template,
    chatml,
    token_map_hash,
)

ASK = Message(role="user", content="What is two and three?")
FIVE = Message(role="assistant", content="It is five.")
NEWLINES = Message(role="assistant", content="\n\n five\n")
MORE = Message(role="user", content="yes or no?")
NO = Message(role="assistant", content="no")

both_renderers = pytest.mark.parametrize("make", [chatml, chat_template])


def test_chatml_adds_no_system_line(tokenizer: Any):
    renderer = chatml(tokenizer)
    prompt = renderer.generation_prompt([ASK])
    assert (
        renderer.text(prompt) == "<|im_start|>user\nWhat is two and three?<|im_end|>\n<|im_start|>assistant\n"
    )


@both_renderers
def test_the_two_renderers_agree_on_a_plain_chatml_template(tokenizer: Any, make: Any):
    messages = [ASK, FIVE, MORE]
    assert make(tokenizer).generation_prompt(messages) == chatml(tokenizer).generation_prompt(messages)


@both_renderers
@pytest.mark.parametrize("reply", [FIVE, NEWLINES, Message(role="assistant", content="")])
def test_a_training_example_begins_with_its_generation_prompt_token_by_token(
    tokenizer: Any, make: Any, reply: Message
):
    renderer = make(tokenizer)
    for before in ([ASK], [ASK, FIVE, MORE]):
        prompt = renderer.generation_prompt(before)
        example = renderer.training_example([*before, reply])
        assert example.tokens[: len(prompt)] == prompt


@both_renderers
def test_the_mask_covers_the_reply_and_its_end_but_not_the_header(tokenizer: Any, make: Any):
    renderer = make(tokenizer)
    example = renderer.training_example([ASK, FIVE])
    trained = [t for t, m in zip(example.tokens, example.mask, strict=True) if m]
    given = [t for t, m in zip(example.tokens, example.mask, strict=True) if not m]
    assert renderer.text(trained) == "It is five.<|im_end|>"
    assert given == renderer.generation_prompt([ASK])
    assert example.mask.dtype == np.float32


@both_renderers
def test_every_reply_of_a_conversation_is_trained(tokenizer: Any, make: Any):
    renderer = make(tokenizer)
    example = renderer.training_example([ASK, FIVE, MORE, NO])
    trained = [t for t, m in zip(example.tokens, example.mask, strict=True) if m]
    assert renderer.text(trained) == "It is five.<|im_end|>no<|im_end|>"


@both_renderers
def test_what_is_trained_parses_back_to_the_reply(tokenizer: Any, make: Any):
    renderer: Renderer = make(tokenizer)
    example = renderer.training_example([ASK, NEWLINES])
    completion = example.tokens[len(renderer.generation_prompt([ASK])) :]
    reply = renderer.parse(completion)
    assert (reply.text, reply.finished) == (NEWLINES["content"], True)


def test_a_completion_without_a_stop_token_is_unfinished(renderer: Renderer, tokenizer: Any):
    tokens = tokenizer.encode("It is", add_special_tokens=False)
    assert renderer.parse(tokens).text == "It is"
    assert not renderer.parse(tokens).finished
    assert renderer.parse([]).text == ""


def test_the_stop_token_is_the_end_of_a_turn(renderer: Renderer, tokenizer: Any):
    assert renderer.stop_tokens == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_template_s_own_system_line_and_tail_are_given_and_not_trained(tokenizer: Any):
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = chat_template(other)
    assert renderer.text(renderer.generation_prompt([ASK])).startswith("<|im_start|>system\nBe brief.")
    example = renderer.training_example([ASK, NEWLINES])
    trained = [t for t, m in zip(example.tokens, example.mask, strict=True) if m]
    assert renderer.text(trained) == "five<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any):
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last %}{{ m['content'] }}{% else %}(cut){% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = chat_template(other)
    assert renderer.generation_prompt([ASK])
    with pytest.raises(RendererError, match="changes earlier turns"):
        renderer.training_example([ASK, FIVE, MORE, NO])


def test_a_template_whose_replies_have_no_end_token_is_refused(tokenizer: Any):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(RendererError, match="begins with no special token"):
        chat_template(other)


def test_a_tokenizer_without_a_template_and_a_template_that_refuses_are_answered_with_what_to_do(
    tokenizer: Any,
):
    other = copy.deepcopy(tokenizer)
    other.chat_template = None
    with pytest.raises(RendererError, match=r"(?s)chat_template is not set.*Use chatml"):
        chat_template(other)
    other.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    renderer = chat_template(other)
    with pytest.raises(RendererError, match="no system role"):
        renderer.generation_prompt([Message(role="system", content="Be brief."), ASK])


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("<think>2 + 3</think>\n\nfive", "five"),
        ("2 + 3</think>five", "five"),
        ("<think>2 + 3 is", ""),
        ("five < think", "five < think"),
    ],
    ids=["both marks", "opened in the prompt", "cut while thinking", "none"],
)
def test_thoughts_are_no_part_of_a_reply(renderer: Renderer, tokenizer: Any, said: str, reply: str):
    tokens = tokenizer.encode(said, add_special_tokens=False)
    assert renderer.parse([*tokens, *renderer.stop_tokens]).text == reply


def test_a_reply_to_a_prompt_that_opens_a_thought_begins_only_after_its_end(tokenizer: Any):
    """Cut before that it says nothing, though its tokens hold no mark at all."""

    def layout(messages: Sequence[Message], reply_next: bool) -> list[Segment]:
        return [Segment("A <think>" if reply_next else "A", False)]

    renderer = Renderer(tokenizer, layout, "<|im_end|>")
    cut, whole = (tokenizer.encode(said, add_special_tokens=False) for said in ("2 + 3 is", "2</think>five"))
    assert renderer.parse(cut).text == ""
    assert renderer.parse([*whole, *renderer.stop_tokens]).text == "five"


def test_chatml_needs_a_tokenizer_that_has_its_tokens(tokenizer: Any):
    class WithoutChatML:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(RendererError, match=r"'<\|im_end\|>' is not one token"):
        chatml(WithoutChatML())  # type: ignore[arg-type]


def test_an_example_ends_with_the_assistant(renderer: Renderer):
    for messages in ([], [ASK], [ASK, FIVE, MORE]):
        with pytest.raises(RendererError, match="ends with a message of the assistant"):
            renderer.training_example(messages)


def test_token_texts_join_to_the_text_of_plain_tokens(renderer: Renderer, tokenizer: Any):
    tokens = tokenizer.encode("yes or no?\n", add_special_tokens=False)
    assert "".join(renderer.token_texts(tokens)) == "yes or no?\n"


def test_the_hash_of_a_vocabulary_ignores_its_order_and_notices_one_swapped_id():
    class Vocabulary:
        def __init__(self, **tokens: int) -> None:
            self.tokens = tokens

        def get_vocab(self) -> dict[str, int]:
            return self.tokens

    first = token_map_hash(Vocabulary(a=0, b=1))  # type: ignore[arg-type]
    assert token_map_hash(Vocabulary(b=1, a=0)) == first  # type: ignore[arg-type]
    assert token_map_hash(Vocabulary(a=1, b=0)) != first  # type: ignore[arg-type]
