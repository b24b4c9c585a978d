"""LeanDecoder: the fast path of Llama-like models (Llama, SmolLM2, Mistral, Qwen2, Qwen3).

The same weights and the same arithmetic as transformers' modules, which stay its slow twin, in
about twenty operations a layer: queries, keys and values in one product, gate and up in one, norms
and rotations without intermediate copies. What layers add up is in fp32, inputs of products are in
the weights' dtype. Rows, positions, adapters and attention come from the stream, as everywhere.

Dimensions in names: N rows, E hidden size, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkerlite_server.engine.lean_functions import gated_silu, rms_norm, rotate
from tinkerlite_server.engine.lora import Adapter, LoraLinear
from tinkerlite_server.engine.products import Product
from tinkerlite_server.engine.streams import Stream

_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}


class LeanDecoder:
    """Embedding, layers and last norm of one base model.

    Args:
        body: transformers' decoder (`model.get_decoder()`), its linear layers wrapped by a `LoraBank`.
    """

    def __init__(self, body: Any) -> None:
        config = body.config
        self._embedding = body.embed_tokens.weight
        self._angles = body.rotary_emb
        self._norm_weight = body.norm.weight.float()
        self._epsilon: float = config.rms_norm_eps
        self._layers = [_Layer(layer, number, config) for number, layer in enumerate(body.layers)]

    @staticmethod
    def suits(config: Any) -> bool:
        """Whether this file computes everything that the configuration asks for."""
        return config.model_type in _MODEL_TYPES and config.hidden_act in ("silu", "swish")

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's own parameters."""
        return sum(product.extra_bytes for layer in self._layers for product in layer.products)

    def forget_factors(self, kept: Adapter | None) -> None:
        """See `Product.forget_factors`."""
        for layer in self._layers:
            for product in layer.products:
                product.forget_factors(kept)

    def __call__(self, stream: Stream) -> Tensor:
        """Final hidden states (N, E), fp32, after the last norm."""
        h_NE = F.embedding(stream.input_ids_N, self._embedding).float()
        cos, sin = self._angles(h_NE, stream.position_ids_N[None])
        half = cos.shape[-1] // 2
        cos_N1F, sin_N1F = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
        for layer in self._layers:
            h_NE = layer(h_NE, cos_N1F, sin_N1F, stream)
        return rms_norm(h_NE, self._norm_weight, self._epsilon, torch.float32)


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, number: int, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._number = number
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_size: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._epsilon: float = config.rms_norm_eps
        self._qkv = _product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = _product(attention.o_proj)
        self._gate_up = _product(mlp.gate_proj, mlp.up_proj)
        self._down = _product(mlp.down_proj)
        self._before_attention = layer.input_layernorm.weight.float()
        self._before_mlp = layer.post_attention_layernorm.weight.float()
        self._head_norm_HD: Tensor | None = None
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm.weight.float(), attention.k_norm.weight.float()
            self._head_norm_HD = torch.stack([query] * self._heads + [key] * self._kv_heads)

    @property
    def products(self) -> tuple[Product, ...]:
        """Those of the layer."""
        return self._qkv, self._out, self._gate_up, self._down

    def __call__(self, h_NE: Tensor, cos_N1F: Tensor, sin_N1F: Tensor, stream: Stream) -> Tensor:
        dtype, adapters = self._qkv.weight_OI.dtype, stream.adapters
        x_NE = rms_norm(h_NE, self._before_attention, self._epsilon, dtype)
        qkv_NHD = self._qkv(x_NE, adapters).unflatten(1, (-1, self._head_size))
        turned = self._heads + self._kv_heads
        if self._head_norm_HD is not None:
            qk_NHD, v_NGD = qkv_NHD.split([turned, self._kv_heads], dim=1)
            qk_NHD = rms_norm(qk_NHD, self._head_norm_HD, self._epsilon, dtype)
            qkv_NHD = torch.cat([qk_NHD, v_NGD], dim=1)
        qkv_NHD = rotate(qkv_NHD, cos_N1F, sin_N1F, turned)
        q_NHD, k_NGD, v_NGD = qkv_NHD.split([self._heads, self._kv_heads, self._kv_heads], dim=1)
        attended_NHD = stream.attend(
            self._number, q_NHD.transpose(0, 1), k_NGD.transpose(0, 1), v_NGD.transpose(0, 1), self._scaling
        )
        h_NE = h_NE + self._out(attended_NHD.flatten(1), adapters)
        x_NE = rms_norm(h_NE, self._before_mlp, self._epsilon, dtype)
        return h_NE + self._down(gated_silu(self._gate_up(x_NE, adapters)), adapters)


def _product(*targets: LoraLinear) -> Product:
    return Product({target.path: target.base for target in targets})
