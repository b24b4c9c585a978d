"""LoRA adapters: what they fit."""

import pytest
from torch import nn

from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest

TARGETS = {"layers.0.self_attn.q_proj": nn.Linear(6, 5), "lm_head": nn.Linear(6, 9)}


def config(*, train_mlp: bool) -> AdapterConfig:
    return AdapterConfig(rank=2, alpha=32.0, seed=1, train_mlp=train_mlp)


def test_layers_that_are_to_be_trained_and_are_not_there_are_refused_by_their_flag():
    """Experts in one tensor, for example, are no linear layers: nothing in them would be trained."""
    with pytest.raises(BadRequest, match="train_mlp is set, but this model has no layers of that kind"):
        Adapter.fresh(config(train_mlp=True), TARGETS)
    assert list(Adapter.fresh(config(train_mlp=False), TARGETS).pairs) == list(TARGETS)
