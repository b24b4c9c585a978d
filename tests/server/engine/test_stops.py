"""When completions end: ids, strings across tokens and characters, limits."""

import numpy as np
import pytest

from tests.tiny import IM_END, make_tiny_model
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.engine.stops import StopRule, StopStrings
from tinkerlite_server.errors import BadRequest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def encode(tokenizer: ModelTokenizer, text: str) -> list[int]:
    return tokenizer._tokenizer.encode(text, add_special_tokens=False)


def ends_at(strings: list[str], tokenizer: ModelTokenizer, tokens: list[int]) -> int | None:
    """How many tokens are kept when these stop strings watch the tokens come."""
    stop = StopStrings(strings, tokenizer)
    return next((n for n in range(1, len(tokens) + 1) if stop.ended_by_last(tokens[:n])), None)


def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(tokenizer: ModelTokenizer):
    tokens = encode(tokenizer, "12") + encode(tokenizer, "\n\n") + encode(tokenizer, "34")
    assert ends_at(["\n\n"], tokenizer, tokens) == 4


def test_a_stop_string_may_straddle_tokens_and_end_inside_one(tokenizer: ModelTokenizer):
    [the] = encode(tokenizer, " the")
    tokens = [*encode(tokenizer, "x"), *encode(tokenizer, "y"), the]
    assert tokenizer.text(tokens) == "xy the"
    assert ends_at(["y t"], tokenizer, tokens) == 3


def test_an_emoji_stops_only_when_its_last_byte_has_come(tokenizer: ModelTokenizer):
    tokens = encode(tokenizer, "a🎉b")
    assert len(tokens) == 6
    assert ends_at(["🎉"], tokenizer, tokens) == 5


def test_an_emoji_that_shares_its_first_bytes_with_the_stop_does_not_stop(tokenizer: ModelTokenizer):
    assert ends_at(["🎉"], tokenizer, encode(tokenizer, "🎊🎈")) is None


def test_a_stop_string_is_found_after_bytes_that_are_no_text(tokenizer: ModelTokenizer):
    [*_, broken] = encode(tokenizer, "🎉")
    tokens = [broken] * 50 + encode(tokenizer, "é") + encode(tokenizer, "END")
    assert ends_at(["éE"], tokenizer, tokens) == 53


def test_special_tokens_are_text_too(tokenizer: ModelTokenizer):
    assert ends_at(["<|im_end|>"], tokenizer, [*encode(tokenizer, "a"), IM_END]) == 2


def test_looking_at_the_last_few_tokens_finds_what_decoding_everything_finds(tokenizer: ModelTokenizer):
    generator = np.random.default_rng(0)
    text = "one🎉two\n\nthree, é four 🎊🎉! <|im_end|> naïve — ok\n"
    pieces = encode(tokenizer, text)
    stops = ["🎉", "\n\n", "é f", "o\n", "🎊🎉!", "ee,", "or", "— o", "|> n"]
    found = 0
    for _ in range(300):
        tokens = generator.choice(pieces, 40).tolist()
        start = generator.integers(0, len(pieces) - 5)
        tokens[20:25] = pieces[start : start + 5]
        strings = generator.choice(stops, 2).tolist()
        whole = (tokenizer.text(tokens[:n]) for n in range(1, 41))
        expected = next((n for n, text in enumerate(whole, 1) if any(s in text for s in strings)), None)
        assert ends_at(strings, tokenizer, tokens) == expected
        found += expected is not None
    assert found > 30


def test_ids_beyond_the_tokenizer_have_no_text_and_stop_nothing(tokenizer: ModelTokenizer):
    [a], [b] = encode(tokenizer, "a"), encode(tokenizer, "b")
    assert ends_at(["ab"], tokenizer, [a, *[600] * 9, b]) == 11


def test_an_empty_stop_string_is_refused(tokenizer: ModelTokenizer):
    with pytest.raises(BadRequest, match="empty"):
        StopStrings(["x", ""], tokenizer)


def test_a_stop_id_ends_with_stop_even_as_the_last_token_allowed():
    rule = StopRule(max_tokens=3, stop_ids=frozenset([9]))
    assert rule.reason([1]) is None
    assert rule.reason([1, 9]) == "stop"
    assert rule.reason([1, 2, 9]) == "stop"
    assert rule.reason([1, 2, 3]) == "length"
