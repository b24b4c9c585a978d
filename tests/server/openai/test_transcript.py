"""A completion's text as it grows: whole characters, no stop strings, tokens where they begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.server.toy_engine import END_OF_TEXT, ToyTokenizer
from tests.tiny import IM_END, make_tiny_model
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.engine.stops import StopRule, StopStrings
from tinkerlite_server.routes.openai.transcript import Piece, Transcript

A, B, BLANK_C, D, HALF, OTHER_HALF, E_BREAK, F, GH, NOTHING = range(10)


def pieces(tokens: Sequence[int], ends: str, *stops: str) -> list[Piece]:
    """What becomes final with each token of the toy vocabulary; `ends` says why the last is the last."""
    transcript = Transcript(ToyTokenizer(), frozenset([END_OF_TEXT]), stops)
    reasons = [None] * (len(tokens) - 1) + [ends]
    return [transcript.add(token, -1.0, [], reason) for token, reason in zip(tokens, reasons, strict=True)]


def texts(tokens: Sequence[int], ends: str, *stops: str) -> list[str]:
    return [piece.text for piece in pieces(tokens, ends, *stops)]


def test_text_is_final_as_soon_as_its_token_is_there():
    assert texts([A, B, BLANK_C], "length") == ["a", "b", " c"]


def test_half_a_character_waits_for_the_other():
    assert texts([A, HALF, OTHER_HALF, B], "length") == ["a", "", "é", "b"]


def test_a_half_that_stays_alone_reads_as_a_replacement():
    assert texts([HALF, A, HALF], "length") == ["", "\ufffda", "\ufffd"]
    assert texts([OTHER_HALF, A], "length") == ["\ufffd", "a"]


def test_the_token_that_ends_a_text_is_no_part_of_it_and_lets_go_of_what_waited():
    assert texts([A, HALF, END_OF_TEXT], "stop") == ["a", "", "\ufffd"]
    assert texts([A, B, END_OF_TEXT], "stop", "bd") == ["a", "", "b"]


def test_an_end_that_may_begin_a_stop_string_waits_until_it_cannot():
    assert texts([A, B, BLANK_C, D], "length", "ab d") == ["", "", "ab c", "d"]
    assert texts([A, A, B, D], "length", "aba") == ["", "a", "", "abd"]


def test_a_stop_string_is_never_sent_and_neither_is_what_its_last_token_says_beyond_it():
    assert texts([A, B, BLANK_C, GH], "stop", " cg") == ["a", "b", "", ""]
    assert texts([D, B, E_BREAK], "stop", "be") == ["d", "", ""]


def test_of_several_stop_strings_the_one_that_begins_first_cuts():
    assert texts([D, A, B, GH], "stop", "gh", "bg") == ["d", "a", "", ""]


def test_a_stop_string_with_a_split_character_in_it():
    assert texts([A, HALF, OTHER_HALF], "stop", "é") == ["a", "", ""]


def test_what_waited_at_the_limit_of_tokens_is_sent():
    assert texts([A, B], "length", "abd") == ["", "ab"]


def test_tokens_come_with_the_text_that_they_begin():
    sent = pieces([A, HALF, OTHER_HALF, NOTHING, B], "length")
    assert [[each.token for each in piece.tokens] for piece in sent] == [
        [A],
        [],
        [HALF, OTHER_HALF],
        [],
        [NOTHING, B],
    ]
    assert [each.offset for piece in sent for each in piece.tokens] == [0, 1, 1, 2, 2]


def test_tokens_of_a_stop_string_are_not_part_of_the_text_and_one_that_it_begins_in_is():
    sent = pieces([A, E_BREAK, B, D], "stop", "\nbd")
    assert [(piece.text, [each.token for each in piece.tokens]) for piece in sent] == [
        ("a", [A]),
        ("e", [E_BREAK]),
        ("", []),
        ("", []),
    ]


def test_tokens_that_say_nothing_at_the_end_come_with_the_end():
    sent = pieces([A, NOTHING, END_OF_TEXT], "stop")
    assert [each.token for piece in sent for each in piece.tokens] == [A, NOTHING]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def test_pieces_put_together_are_the_decoded_whole_up_to_its_first_stop(tokenizer: ModelTokenizer):
    """As the engine ends samples, on text with every difficulty, against decoding all of it at once."""
    generator = np.random.default_rng(0)
    text = "one🎉two\n\nthree, é four 🎊🎉! <|im_end|> naïve — ok\n"
    words = [token for token in tokenizer.encode(text) if token != IM_END]
    stops = ["🎉", "\n\n", "é f", "o\n", "🎊🎉!", "ee,", "or", "— o", "ok\none", "wo"]
    reasons = {"stop": 0, "length": 0}
    for _ in range(500):
        tokens = generator.choice([*words, IM_END], 60).tolist()
        start = generator.integers(0, len(words) - 8)
        tokens[20:28] = words[start : start + 8]
        strings = tuple(generator.choice(stops, generator.integers(0, 3)).tolist())
        rule = StopRule(
            max_tokens=50,
            stop_ids=frozenset([IM_END]),
            strings=StopStrings(strings, tokenizer) if strings else None,
        )
        transcript = Transcript(tokenizer, rule.stop_ids, strings)
        sent = ""
        for n in range(1, 51):
            reason = rule.reason(tokens[:n])
            sent += transcript.add(tokens[n - 1], -1.0, [], reason).text
            assert not any(string in sent for string in strings)
            if reason is not None:
                break
        kept = tokens[: n - 1] if tokens[n - 1] == IM_END else tokens[:n]
        whole = tokenizer._decode(kept)
        cuts = [whole.find(string) for string in strings if string in whole]
        assert sent == whole[: min(cuts, default=len(whole))]
        reasons[reason] += 1
    assert min(reasons.values()) > 50
