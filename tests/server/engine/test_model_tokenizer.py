"""Text and tokens: what each token adds, chat templates, and tokenizers of other kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.tiny import FEWEST_TOKENS, IM_END, make_tiny_model
from tinkerlite_server.engine.catalog import resolve_folder
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.errors import BadRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ModelTokenizer:
    return ModelTokenizer(folder)


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real_model)])
def any_tokenizer(request: pytest.FixtureRequest, folder: Path) -> ModelTokenizer:
    name = "HuggingFaceTB/SmolLM2-135M-Instruct" if request.param == "real" else str(folder)
    return ModelTokenizer(resolve_folder(name))


@pytest.fixture(scope="module")
def of_characters(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A vocabulary of characters, with a mark for blanks and bytes for all else, as Llama 2 has one."""
    folder = tmp_path_factory.mktemp("characters")
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh", "\u2581a"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ModelTokenizer(folder)


def test_what_tokens_add_put_together_is_what_decoding_them_all_gives(any_tokenizer: ModelTokenizer):
    """Any tokens: halves of characters, bytes that are no text, special tokens."""
    size = len(any_tokenizer._tokenizer)
    texts = any_tokenizer.encode("naïve 🎉🎊 — ok\n\n  x = 12;  é<|im_end|>")
    assert any_tokenizer.text(texts) == "naïve 🎉🎊 — ok\n\n  x = 12;  é<|im_end|>"
    generator = np.random.default_rng(0)
    for _ in range(300):
        tokens = generator.integers(0, size, 20).tolist() + generator.choice(texts, 20).tolist()
        generator.shuffle(tokens)
        assert any_tokenizer.text(tokens) == any_tokenizer._decode(tokens)


def test_a_part_of_a_character_is_bytes(tokenizer: ModelTokenizer):
    parts = [tokenizer.token_bytes(token) for token in tokenizer.encode("🎉")]
    assert len(parts) > 1
    assert b"".join(parts) == "🎉".encode()


def test_special_tokens_are_their_names_and_ids_beyond_the_vocabulary_say_nothing(tokenizer: ModelTokenizer):
    assert tokenizer.token_bytes(IM_END) == b"<|im_end|>"
    assert tokenizer.token_bytes(600) == b""


def test_a_blank_that_begins_a_text_is_kept_whatever_the_decoder_does(of_characters: ModelTokenizer):
    blank_a = of_characters._tokenizer.convert_tokens_to_ids("\u2581a")
    assert of_characters._decode([blank_a]) == "a"
    assert of_characters.token_bytes(blank_a) == b" a"


def test_bytes_of_a_vocabulary_of_characters_are_bytes(of_characters: ModelTokenizer):
    tokens = of_characters.encode("bé🎉</s>")
    assert [of_characters.token_bytes(token) for token in tokens[-7:]] == [
        *(bytes([byte]) for byte in "é🎉".encode()),
        b"</s>",
    ]
    assert of_characters.text(tokens) == " bé🎉</s>"


def test_a_conversation_reads_as_the_models_own_template_says(tokenizer: ModelTokenizer):
    tokens = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.text(tokens) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.real_model
def test_the_template_of_a_real_model_adds_its_own_system_message():
    real = ModelTokenizer(resolve_folder("HuggingFaceTB/SmolLM2-135M-Instruct"))
    tokens = real.encode_chat([{"role": "user", "content": "hi"}])
    assert real.text(tokens).startswith("<|im_start|>system\nYou are a helpful AI assistant")


def with_template(folder: Path, to: Path, template: str | None) -> ModelTokenizer:
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (to / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (to / "tokenizer_config.json").write_text(json.dumps(settings))
    return ModelTokenizer(to)


def test_a_model_without_a_template_is_not_sent_messages(folder: Path, tmp_path: Path):
    tokenizer = with_template(folder, tmp_path, None)
    with pytest.raises(BadRequest, match="has no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ messages[7]['content'] }}", "no element"),
        ("{{ 1 / 0 }}", "zero"),
    ],
)
def test_what_a_template_refuses_is_the_callers_to_mend(
    folder: Path, tmp_path: Path, template: str, said: str
):
    tokenizer = with_template(folder, tmp_path, template)
    with pytest.raises(BadRequest, match=f"chat template refuses .*{said}"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_the_smallest_vocabulary_has_every_byte(tmp_path: Path):
    tokenizer = ModelTokenizer(make_tiny_model(tmp_path, vocab_size=FEWEST_TOKENS))
    said = {tokenizer.token_bytes(token) for token in range(FEWEST_TOKENS)}
    assert {bytes([byte]) for byte in range(256)} <= said


def test_the_tokenizer_folder_must_exist(tmp_path: Path):
    with pytest.raises(Exception, match="nowhere"):
        ModelTokenizer(tmp_path / "nowhere")
