"""BaseModel: one set of frozen weights, run over streams.

The modules are transformers' own; attention goes through the function registered here, which
asks the stream. Logits are never computed here: callers take hidden rows to logprobs.py, or
to `logits` for the few rows that sampling needs.

In half precision only the matrix products are: what layers add up is kept in fp32 from the
embedding on, and so are logits. That halves the rounding of logprobs against transformers'
own bfloat16, at no cost on a CPU: SmolLM2-135M, mean distance to fp32 arithmetic on the same
weights, 0.012 nats a token instead of 0.026.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tinkerlite_server.engine.lean_decoder import LeanDecoder
from tinkerlite_server.engine.lora import Adapter, AdapterRows, LoraBank
from tinkerlite_server.engine.protocols import Ids, ModelInfo
from tinkerlite_server.engine.streams import PackedStream, Stream
from tinkerlite_server.engine.unembedding import Unembedding
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
    # Rotations are in fp32; values come straight from a product, in the weights' dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    output_NHD = stream.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return output_NHD[None], None


# Registered without a mask function of the same name, so transformers builds no mask.
AttentionInterface.register(_ATTENTION, _attend_stream)


class BaseModel:
    """Frozen weights in memory, with every LoRA target wrapped.

    Args:
        model: transformers' own with other weights, to take over; absent, it is loaded from `info.folder`.
        lean: off only to compare the lean decoder with transformers' modules.
    """

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        dtype: torch.dtype,
        model: Any = None,
        *,
        lean: bool = True,
    ) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        # A few tokens from all over the vocabulary, in two orders with one beginning; as transformers
        # computes each sequence alone, to compare with.
        probe = np.arange(1, 11) * (info.vocab_size // 12)
        probes = [probe, np.concatenate([probe[:5], probe[:4:-1]])]
        expected: list[Tensor] = []
        if model is None:
            model = load_transformers_model(info.folder, dtype)
            model.to(device).eval().requires_grad_(False)
            expected = [_transformers_logprobs(model, each) for each in probes]
        self.bank = LoraBank(model)
        self._body: nn.Module = model.get_decoder()
        self.unembed = Unembedding(model.get_output_embeddings())
        if dtype != torch.float32 and self.bank.covers_products_of(model):
            model.get_input_embeddings().register_forward_hook(output_in_fp32)
        config = model.config.get_text_config()
        self._lean = LeanDecoder(self._body) if lean and LeanDecoder.suits(config) else None
        self.layers: int = config.num_hidden_layers
        self.query_heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // self.query_heads
        if expected:
            self._check(probes, expected)
        self.parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.parameter_bytes += self.unembed.extra_bytes + (self._lean.extra_bytes if self._lean else 0)

    def _check(self, probes: Sequence[Ids], expected: Sequence[Tensor]) -> None:
        """What this engine leaves out of transformers' own forward must not matter, nor may sequences of a
        pass.

        Scaled or capped logits, attention sinks and the like live outside the parts used here; what mixes
        rows outside attention mixes sequences.

        Raises:
            BadRequest: the logprobs differ, so every number from this model would be wrong.
        """
        with torch.inference_mode():
            stream = PackedStream(probes, [None] * len(probes), self.device)
            logprobs_NV = self.logits(self.hidden(stream), ()).log_softmax(-1)
            apart = max(
                float((logprobs_NV[torch.from_numpy(rows).to(self.device)] - alone_NV).abs().mean())
                for rows, alone_NV in zip(stream.rows, expected, strict=True)
            )
        # Over a whole vocabulary transformers' own implementations are 0.1 apart in bfloat16
        # (SmolLM2-135M, eager and sdpa); what is left out changes logprobs by nats.
        if not apart < (1e-3 if self.dtype == torch.float32 else 0.3):
            raise BadRequest(
                f"model {self.info.name!r} ({self.info.arch}) cannot be run here: its logprobs differ from "
                f"transformers' own by {apart:.2g} nats on average, so its architecture has parts that this "
                "engine does not compute"
            )

    def hidden(self, stream: Stream) -> Tensor:
        """Final hidden states (N, hidden), after the last norm."""
        if self._lean is not None:
            return self._lean(stream)
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

    def forget_factors(self, kept: Adapter | None) -> None:
        """Let go of what is kept beside adapters, but for one: of a snapshot it is more than itself."""
        self.unembed.forget_factors(kept)
        if self._lean is not None:
            self._lean.forget_factors(kept)

    def logits(
        self, hidden_RD: Tensor, adapters: Sequence[AdapterRows], room: Tensor | None = None
    ) -> Tensor:
        """fp32 logits (R, vocabulary) of a few rows, in `room` if given (`Unembedding.room`).

        `adapters` assigns these rows, not the stream's.
        """
        if len(adapters) == 1 and adapters[0].rows is None:
            return self.unembed(hidden_RD, self.unembed.factors(adapters[0].adapter), room)
        logits_RV = self.unembed(hidden_RD, room=room)
        for assigned in adapters:
            factors = self.unembed.factors(assigned.adapter)
            if factors is not None:
                part_RV = logits_RV[assigned.rows]
                self.unembed.add_delta(part_RV, self.unembed.low(hidden_RD[assigned.rows], factors), factors)
                logits_RV[assigned.rows] = part_RV
        return logits_RV


def output_in_fp32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A hook: what the module puts out, in fp32."""
    return output.float()


def load_transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model, without its progress bars: a server has a log, not a terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=_ATTENTION)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _transformers_logprobs(model: Any, ids: Ids) -> Tensor:
    """log p of every token after each of `ids` (N, vocabulary), fp32, by the model's own forward."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits_NV = model(input_ids=torch.from_numpy(ids)[None].to(model.device)).logits[0]
    model.set_attn_implementation(_ATTENTION)
    return logits_NV.float().log_softmax(-1)
