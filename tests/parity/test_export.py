"""A model merged by the cookbook says in transformers what its adapter said on the server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cookbook import export
from tests.parity.adapters_in_peft import IGNORED_WARNINGS, logprobs_in_peft
from tests.tiny import make_tiny_model
from tinkerlite import ServiceClient
from tinkerlite.types import AdamParams, Datum, ModelInput, TensorData

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)

TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]


def base_model(folder: Path, *, tied: bool, dtype: str) -> Path:
    make_tiny_model(folder, tie_embeddings=tied, arch="qwen2")
    if dtype != "float32":
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def trained(service: ServiceClient, base: Path) -> tuple[str, np.ndarray]:
    """(sampler weights after a few large steps, logprobs of TOKENS[1:] under them)."""
    trainer = service.create_lora_training_client(str(base), rank=4, seed=1)
    targets = TensorData.from_numpy(np.asarray(TOKENS[1:], dtype=np.int64))
    datum = Datum(ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": targets})
    for _ in range(3):
        trainer.forward_backward([datum], "cross_entropy")
        trainer.optim_step(AdamParams(learning_rate=0.01)).result()
    path = trainer.save_weights_for_sampler("final").result().path
    assert path is not None
    scores = trainer.save_weights_and_get_sampling_client().compute_logprobs(ModelInput.from_ints(TOKENS))
    return path, np.asarray(scores.result()[1:], dtype=np.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_has_the_servers_logprobs(tmp_path: Path, tied: bool):
    base = base_model(tmp_path / "base", tied=tied, dtype="float32")
    with ServiceClient(base_url=f"local://{base}") as service:
        path, here = trained(service, base)
        merged = tmp_path / "merged"
        export.main([path, "--base", str(base), "--out", str(merged), "--base-url", f"local://{base}"])
    np.testing.assert_allclose(logprobs_in_peft(merged, None, TOKENS), here, atol=2e-5)
    assert np.abs(logprobs_in_peft(base, None, TOKENS) - here).max() > 0.1
    assert (
        AutoTokenizer.from_pretrained(merged).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    )
    # The unembedding was adapted, so it is no longer the embedding, which stays what it was.
    assert not json.loads((merged / "config.json").read_text())["tie_word_embeddings"]
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    untouched = AutoModelForCausalLM.from_pretrained(base).model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight, untouched)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """(a bfloat16 base with tied embeddings, the folder of its adapter, logprobs under both)."""
    folder = tmp_path_factory.mktemp("half")
    base = base_model(folder / "base", tied=True, dtype="bfloat16")
    with ServiceClient(base_url=f"local://{base}") as service:
        path, here = trained(service, base)
        service.create_rest_client().download_checkpoint(path, folder / "adapter").result()
    return base, folder / "adapter", here


def test_a_bfloat16_base_stays_bfloat16_and_is_rounded_once(
    half: tuple[Path, Path, np.ndarray], tmp_path: Path
):
    base, adapter, here = half
    merged = load_file(export.merge(adapter, None, tmp_path / "merged") / "model.safetensors")
    before, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    before["lm_head.weight"] = before["model.embed_tokens.weight"]
    assert merged.keys() == before.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        matrices = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name]
        if f"{matrices}.lora_A.weight" in lora:
            product = lora[f"{matrices}.lora_B.weight"] @ lora[f"{matrices}.lora_A.weight"]
            expected = (expected.float() + config["lora_alpha"] / config["r"] * product).to(torch.bfloat16)
            assert not torch.equal(tensor, before[name])
        # The order of a sum may send a value next to the middle between two to either.
        assert (tensor == expected).float().mean() > 0.999, name
    np.testing.assert_allclose(logprobs_in_peft(tmp_path / "merged", None, TOKENS), here, atol=0.1)


def test_adapters_that_peft_made_are_merged_too(tmp_path: Path):
    torch.manual_seed(0)
    base = base_model(tmp_path / "base", tied=True, dtype="float32")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], use_dora=True, rank_pattern={"q_proj": 2}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    merged = export.merge(tmp_path / "adapter", str(base), tmp_path / "merged")
    unmerged = logprobs_in_peft(base, tmp_path / "adapter", TOKENS)
    np.testing.assert_allclose(logprobs_in_peft(merged, None, TOKENS), unmerged, atol=2e-5)
    assert np.abs(logprobs_in_peft(base, None, TOKENS) - unmerged).max() > 0.1


@pytest.mark.parametrize(
    "other", [{"hidden": 96}, {"layers": 1}, {"layers": 3}], ids=["wider", "shallower", "deeper"]
)
def test_an_adapter_of_another_model_is_refused_and_nothing_is_left(
    half: tuple[Path, Path, np.ndarray], tmp_path: Path, other: dict[str, int]
):
    _, adapter, _ = half
    base = make_tiny_model(tmp_path / "base", arch="qwen2", **other)
    with pytest.raises(export.CannotMerge, match=r"is an adapter of another model: .*layers\.\d"):
        export.merge(adapter, str(base), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_cannot_be_merged_is_refused_with_the_reason(
    half: tuple[Path, Path, np.ndarray], tmp_path: Path
):
    base, adapter, _ = half
    with pytest.raises(export.CannotMerge, match="it is a whole model already"):
        export.merge(base, None, tmp_path / "merged")
    with pytest.raises(export.CannotMerge, match=r"the base model .*nowhere cannot be loaded"):
        export.merge(adapter, str(tmp_path / "nowhere"), tmp_path / "merged")
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    how = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (quantized / "config.json").write_text(json.dumps(config | how))
    with pytest.raises(export.CannotMerge, match="is quantized"):
        export.merge(adapter, str(quantized), tmp_path / "merged")


def test_a_full_folder_is_never_written_into(
    half: tuple[Path, Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, adapter, _ = half
    (tmp_path / "precious").write_text("")
    with pytest.raises(SystemExit, match="1"):
        export.main([str(adapter), "--out", str(tmp_path)])
    assert "is not an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]
