"""Adapters on disk: what PEFT reads from us, what we read from PEFT, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny import make_tiny_model
from tinkerlite_server.engine.adapter_files import (
    read_adapter,
    read_optimizer,
    write_adapter,
    write_optimizer,
)
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest

# PEFT still asks transformers by a name that transformers is about to drop, and warns that merging a
# tied head's adapter would change the embedding too (nothing is merged here).
PEFT_LAGS = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"

RANK, HIDDEN, VOCAB = 4, 64, 512
CONFIG = AdapterConfig(rank=RANK, alpha=12.0, seed=7, train_mlp=False)
QUERY = "model.layers.0.self_attn.q_proj"
TOKENS = torch.tensor([[1, 50, 60, 70, 80, 2]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "step-10"
    path.mkdir()
    return path


def random_pair(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
    return a, 0.1 * torch.randn(outputs, RANK, generator=generator)


def adapter_of(base, *names: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors for every module with one of these last names."""
    return {
        path: random_pair(*module.weight.shape, seed)
        for seed, (path, module) in enumerate(base.named_modules())
        if path.rpartition(".")[2] in names
    }


def saved(folder: Path) -> Path:
    write_adapter(folder, {QUERY: random_pair(HIDDEN, HIDDEN, 0)}, CONFIG, "some/model")
    return folder


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(file: Path, **changes: Tensor | None) -> None:
    tensors = load_file(file) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


# ---- there and back ----


def test_what_is_written_is_read_back_exactly(folder):
    tensors = {QUERY: random_pair(HIDDEN, HIDDEN, 0), "lm_head": random_pair(VOCAB, HIDDEN, 1)}
    write_adapter(folder, tensors, CONFIG, "some/model")
    read, config = read_adapter(folder)
    assert config == CONFIG
    assert read.keys() == tensors.keys()
    for path, (a, b) in tensors.items():
        assert torch.equal(read[path][0], a)
        assert torch.equal(read[path][1], b)


def test_slices_of_one_big_tensor_and_other_dtypes_are_written_as_float32(folder):
    bank = torch.randn(2, RANK, HIDDEN)
    tensors = {
        "model.layers.0.self_attn.q_proj": (bank[0].requires_grad_(), torch.randn(RANK, HIDDEN).T),
        "model.layers.1.self_attn.q_proj": (bank[1], torch.ones(HIDDEN, RANK, dtype=torch.bfloat16)),
    }
    write_adapter(folder, tensors, CONFIG, "some/model")
    read, _ = read_adapter(folder)
    for path, pair in tensors.items():
        for found, written in zip(read[path], pair, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, written.float())


def test_optimizer_state_is_read_back_exactly(folder):
    moments = {f"{QUERY}.lora_{side}": (torch.randn(3, 2), torch.rand(3, 2)) for side in "AB"}
    write_optimizer(folder, moments, 17)
    read, steps = read_optimizer(folder)
    assert steps == 17
    assert read.keys() == moments.keys()
    for name, (first, second) in moments.items():
        assert torch.equal(read[name][0], first)
        assert torch.equal(read[name][1], second)


# ---- PEFT ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings(PEFT_LAGS, "ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_peft_computes_the_same_logits_as_the_equation(tmp_path, folder, tied):
    tiny = make_tiny_model(tmp_path / "model", tie_embeddings=tied)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    tensors = adapter_of(
        base, "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"
    )
    assert len(tensors) == 2 * 7 + 1
    write_adapter(folder, tensors, CONFIG, str(tiny))

    expected = logits_by_hand(base, tensors, scale=CONFIG.alpha / CONFIG.rank)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder).eval()
    with torch.no_grad():
        found = theirs(TOKENS).logits
        plain = base(TOKENS).logits
    assert (expected - plain).abs().max() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def logits_by_hand(base, tensors, scale: float) -> Tensor:
    """y = x W^T + scale (x A^T) B^T at each target; the embedding stays as it was, tied or not."""

    def hook(a: Tensor, b: Tensor):
        return lambda module, inputs, output: output + scale * (inputs[0] @ a.T) @ b.T

    hooks = [base.get_submodule(path).register_forward_hook(hook(*pair)) for path, pair in tensors.items()]
    with torch.no_grad():
        logits = base(TOKENS).logits
    for handle in hooks:
        handle.remove()
    return logits


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.filterwarnings(PEFT_LAGS)
def test_an_adapter_that_peft_saved_is_read_with_its_scale(base, folder, rank_stabilised):
    theirs = get_peft_model(
        base,
        LoraConfig(
            r=RANK,
            lora_alpha=6,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            use_rslora=rank_stabilised,
            task_type="CAUSAL_LM",
        ),
    )
    theirs.save_pretrained(folder)
    tensors, config = read_adapter(folder)
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    assert len(tensors) == 4
    assert torch.equal(tensors[QUERY][0], layer.lora_A["default"].weight)
    assert config.alpha / config.rank == pytest.approx(layer.scaling["default"])
    assert (config.seed, config.train_attn, config.train_mlp, config.train_unembed) == (0, True, False, False)


@pytest.mark.parametrize(("alpha", "written"), [(12, "12"), (12.0, "12"), (12.5, "12.5")])
def test_a_whole_alpha_is_written_as_the_integer_that_peft_declares(folder, alpha, written):
    config = AdapterConfig(rank=RANK, alpha=alpha, seed=0)
    write_adapter(folder, {QUERY: random_pair(HIDDEN, HIDDEN, 0)}, config, "some/model")
    assert f'"lora_alpha": {written},' in (folder / "adapter_config.json").read_text()


def test_target_modules_are_last_names_as_other_readers_expect(base, folder):
    write_adapter(folder, adapter_of(base, "q_proj", "lm_head"), CONFIG, "some/model")
    stated = json.loads((folder / "adapter_config.json").read_text())
    assert stated["target_modules"] == ["lm_head", "q_proj"]
    assert stated["base_model_name_or_path"] == "some/model"
    assert (stated["r"], stated["lora_alpha"], stated["peft_type"]) == (RANK, 12, "LORA")


# ---- refusals name the file and what is wrong with it ----


def refused(folder: Path) -> str:
    with pytest.raises(BadRequest) as error:
        read_adapter(folder)
    assert folder.name in str(error.value)
    assert str(folder.parent) not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_is_refused(folder, name):
    (saved(folder) / name).unlink()
    assert f"{name} of checkpoint 'step-10' is missing" in refused(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tinkerlite.json"])
def test_a_file_cut_short_is_refused(folder, name):
    file = saved(folder) / name
    file.write_bytes(file.read_bytes()[:-20])
    assert f"{name} of checkpoint 'step-10' cannot be read" in refused(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("rank_pattern", {"q_proj": 8}),
        ("modules_to_save", ["embed_tokens"]),
    ],
)
def test_what_is_not_plain_lora_is_refused(folder, field, value):
    edit_json(saved(folder) / "adapter_config.json", **{field: value})
    assert f"{field} = {value!r}" in refused(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("r", 0), ("r", "four"), ("lora_alpha", None), ("peft_type", "IA3")]
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, field, value):
    edit_json(saved(folder) / "adapter_config.json", **{field: value})
    message = refused(folder)
    assert f"adapter_config.json of checkpoint 'step-10': {field}" in message
    assert repr(value) in message


def test_a_rank_other_than_the_tensors_is_refused(folder):
    edit_json(saved(folder) / "adapter_config.json", r=8)
    assert "A (4, 64) and B (64, 4); with r = 8" in refused(folder)


def test_half_a_pair_is_refused(folder):
    edit_tensors(
        saved(folder) / "adapter_model.safetensors", **{f"base_model.model.{QUERY}.lora_B.weight": None}
    )
    assert f"holds only lora_A of {QUERY}" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        f"base_model.model.{QUERY}.lora_A.default.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ],
)
def test_a_foreign_tensor_is_refused_by_name(folder, name):
    edit_tensors(saved(folder) / "adapter_model.safetensors", **{name: torch.zeros(2, 2)})
    assert f"holds {name}" in refused(folder)


def test_weights_that_are_not_floating_point_are_refused(folder):
    name = f"base_model.model.{QUERY}.lora_A.weight"
    edit_tensors(
        saved(folder) / "adapter_model.safetensors", **{name: torch.zeros(RANK, HIDDEN, dtype=torch.int64)}
    )
    assert "torch.int64" in refused(folder)


def test_a_checkpoint_without_optimizer_state_says_how_to_go_on(folder):
    with pytest.raises(BadRequest, match=r"'step-10' has no optimizer state .* load its weights alone"):
        read_optimizer(saved(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "no step count"),
        ({"exp_avg_sq.q.lora_A": None}, "lacks exp_avg or exp_avg_sq of q.lora_A"),
        ({"exp_avg_sq.q.lora_A": torch.zeros(3)}, "shapes differ"),
        ({"grad.q.lora_A": torch.zeros(2)}, "holds grad.q.lora_A"),
    ],
)
def test_optimizer_state_that_is_incomplete_is_refused(folder, change, message):
    write_optimizer(folder, {"q.lora_A": (torch.zeros(2), torch.zeros(2))}, 1)
    edit_tensors(folder / "optimizer.safetensors", **change)
    with pytest.raises(BadRequest, match=message):
        read_optimizer(folder)
