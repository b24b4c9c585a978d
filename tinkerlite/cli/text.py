"""Text for a model: from the command line or standard input, into token ids and back."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

from tinkerlite.errors import InvalidRequest
from tinkerlite.tokenizers import Tokenizer


def given_text(argument: str) -> str:
    """The argument; for `-`, standard input without its last line break.

    Raises:
        InvalidRequest: it is empty, or not UTF-8.
    """
    try:
        text = sys.stdin.read().removesuffix("\n") if argument == "-" else argument
        text.encode()  # bytes that are no text arrive as lone surrogates
    except UnicodeError as error:
        raise InvalidRequest(f"the text is not UTF-8: {error}") from error
    if not text:
        raise InvalidRequest("the text is empty; a model needs at least one token to go on from")
    return text


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the text as it stands, with what the tokenizer puts before any text."""
    return list(tokenizer.encode(text))


def as_user_turn(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a conversation in which the user has said `text`, up to where the reply begins.

    Raises:
        InvalidRequest: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidRequest("this model's tokenizer has no chat template; leave out --chat")
    conversation = [{"role": "user", "content": text}]
    rendered: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens, those at the beginning too.
    return list(tokenizer.encode(rendered, add_special_tokens=False))


def visible(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become U+FFFD, except line breaks
    and tabs. What a model writes may contain any.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(each) else each for each in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"


def decoded(tokenizer: Tokenizer, tokens: Sequence[int], *, plain: bool = False) -> str:
    """The text of some tokens; `plain` leaves out special tokens, such as the one that ended it."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=plain))
