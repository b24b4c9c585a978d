"""BaseModel: one set of frozen weights, run over streams.

The modules are transformers' own; attention goes through the function registered here, which
asks the stream. Logits are never computed here: callers take hidden rows to logprobs.py, or
to `logits` for the few rows that sampling needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tinkerlite_server.engine.lora import AdapterRows, LoraBank, add_delta
from tinkerlite_server.engine.protocols import ModelInfo
from tinkerlite_server.engine.streams import Stream
from tinkerlite_server.errors import BadRequest

_ATTENTION = "tinkerlite_stream"


def _attend_stream(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    stream: Stream,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: (1, heads, N, D) in, (1, N, heads, D) out."""
    output_NHD = stream.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return output_NHD[None], None


# Registered without a mask function of the same name, so transformers builds no mask.
AttentionInterface.register(_ATTENTION, _attend_stream)


class BaseModel:
    """Frozen weights in memory, with every LoRA target wrapped."""

    def __init__(self, info: ModelInfo, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        model = _load(folder, dtype)
        model.to(device).eval().requires_grad_(False)
        self.bank = LoraBank(model)
        self._body: nn.Module = model.get_decoder()
        self.head: nn.Linear = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.query_heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // self.query_heads
        _refuse_unsupported(config, info)
        self.parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def hidden(self, stream: Stream) -> Tensor:
        """Final hidden states (N, hidden), after the last norm."""
        self.bank.active = stream.adapters
        try:
            output = self._body(
                input_ids=stream.input_ids_N[None],
                position_ids=stream.position_ids_N[None],
                use_cache=False,
                stream=stream,
            )
        finally:
            self.bank.active = ()
        return output.last_hidden_state[0]

    def logits(self, hidden_RD: Tensor, adapters: Sequence[AdapterRows]) -> Tensor:
        """fp32 logits (R, vocabulary) of a few rows; `adapters` assigns these rows, not the stream's."""
        logits_RV = F.linear(hidden_RD, self.head.weight, self.head.bias)
        for assigned in adapters:
            logits_RV = add_delta(logits_RV, hidden_RD, assigned, "lm_head")
        return logits_RV.float()


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model, without its progress bars: a server has a log, not a terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=_ATTENTION)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _refuse_unsupported(config: Any, info: ModelInfo) -> None:
    """Attention features that a stream does not compute must not be dropped silently.

    Raises:
        BadRequest: naming the feature.
    """
    if getattr(config, "attn_logit_softcapping", None):
        raise BadRequest(f"model {info.name!r} caps its attention logits, which this engine does not compute")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < info.max_context:
        raise BadRequest(
            f"model {info.name!r} attends within a window of {window} tokens, which this engine does not "
            f"compute; contexts up to that window would be exact, but {info.max_context} are on offer"
        )
