"""A model whose numbers would come out wrong here is refused when it loads, in every dtype."""

from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, Lfm2Config, Lfm2ForCausalLM

from tests.tiny import make_tiny_model
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.protocols import EngineLimits, ModelInfo
from tinkerlite_server.errors import BadRequest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path, dtype: str):
    folder = make_tiny_model(tmp_path / "scaled")  # for its tokenizer
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=518,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logits_scaling=1.5,
        initializer_range=0.2,
    )
    GraniteForCausalLM(config).save_pretrained(folder)
    limits = EngineLimits(device="cpu", dtype=dtype)
    info = build_catalog([str(folder)], limits)[str(folder)]
    with pytest.raises(BadRequest, match=r"differ from transformers' own by 0\.7"):
        BaseModel(info, torch.device("cpu"), getattr(torch, dtype))


def test_a_model_that_mixes_the_sequences_of_a_pass_is_refused(tmp_path: Path):
    """A convolution along the rows reads whatever was packed before a sequence, and gets each right alone."""
    folder = make_tiny_model(tmp_path / "convolves")  # for its tokenizer
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=518,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.2,
    )
    Lfm2ForCausalLM(config).save_pretrained(folder)
    info = ModelInfo(
        name="convolves",
        arch="lfm2",
        vocab_size=518,
        max_context=512,
        eos_ids=(0,),
        dtype="float32",
        folder=folder,
        tokenizer_hash="0" * 64,
    )
    with pytest.raises(BadRequest, match="differ from transformers' own by"):
        BaseModel(info, torch.device("cpu"), torch.float32)
