"""FullModel: a model all of whose weights are trained, in a copy that one run has to itself.

The master weights are fp32, in transformers' own modules. A pass multiplies as the sampler does: in
half precision with the masters rounded to it, while what layers add up stays fp32. So trainer and
sampler agree as closely as they do on a base model, and gradients flow back through the rounding to
the masters. Weights that a model ties are one parameter, with the gradients of both of its uses.

Knows nothing about optimizers, losses or files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM

from tinkerlite_server.engine.base_model import BaseModel, load_transformers_model, output_in_fp32
from tinkerlite_server.engine.lora import target_kind
from tinkerlite_server.engine.protocols import ModelInfo
from tinkerlite_server.engine.streams import Stream
from tinkerlite_server.engine.unembedding import Unembedding
from tinkerlite_server.errors import BadRequest


class FullModel:
    """Trainable weights, run over streams.

    Args:
        dtype: of matrix products; the weights themselves are fp32.
        folder: where the weights are read from, as transformers lays them out.

    Raises:
        BadRequest: they are those of a model with another vocabulary or context than `info` says.
    """

    def __init__(self, info: ModelInfo, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        model = load_fitting(info, torch.float32, folder).to(device).eval()
        for weight in model.parameters():
            # Copied: weights on a file's own alignment would round differently in the last bit.
            weight.data = weight.data.clone()
        self._model: Any = model.requires_grad_(True)
        self._body: nn.Module = model.get_decoder()
        if dtype != torch.float32 and _multiplies_in_linear_layers_alone(model):
            model.get_input_embeddings().register_forward_hook(output_in_fp32)
            for module in self._body.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(_input_in_the_weights_dtype)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every master weight by transformers' name, in a fixed order; a tied one once."""
        yield from self._model.named_parameters()

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained."""
        return sum(weight.numel() for _, weight in self.parameters())

    def hidden(self, stream: Stream) -> Tensor:
        """Final hidden states (N, hidden), after the last norm; differentiable in the master weights."""
        rounded = {name: weight.to(self.dtype) for name, weight in self._body.named_parameters()}
        inputs = {
            "input_ids": stream.input_ids_N[None],
            "position_ids": stream.position_ids_N[None],
            "use_cache": False,
            "stream": stream,
        }
        output: Any = functional_call(self._body, rounded, (), inputs)
        return output.last_hidden_state[0]

    @property
    def unembed(self) -> Unembedding:
        """Hidden rows to logits, with the master weights of now; differentiable in them."""
        head = self._model.get_output_embeddings()
        bias = None if head.bias is None else head.bias.to(self.dtype)
        return Unembedding(_Head(head.weight.to(self.dtype), bias))

    def frozen_copy(self) -> BaseModel:
        """A copy for sampling, in the dtype of matrix products; later steps do not change it."""
        return BaseModel(self.info, self.device, self.dtype, self.transformers_model(self.dtype, copied=True))

    def transformers_model(self, dtype: torch.dtype, *, copied: bool = False) -> Any:
        """transformers' model with the weights of now: copies, frozen, unless the masters will do."""
        if dtype == torch.float32 and not copied:
            return self._model
        # A tied weight is one entry, so it is one parameter of the copy as well.
        weights = {
            id(weight): nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
            for weight in self._model.parameters()
        }
        return copy.deepcopy(self._model, weights)


@dataclass(frozen=True, eq=False)
class _Head:
    """An output layer's weights for one pass."""

    weight: Tensor
    bias: Tensor | None


def load_fitting(info: ModelInfo, dtype: torch.dtype, folder: Path) -> Any:
    """transformers' model in a folder, with the vocabulary and context of a base model.

    Raises:
        BadRequest: it has others.
    """
    model = load_transformers_model(folder, dtype)
    config = model.config.get_text_config()
    found = (config.vocab_size, config.max_position_embeddings)
    if found != (info.vocab_size, info.max_context):
        raise BadRequest(
            f"the weights in {folder.name!r} are of a model with {found[0]} tokens and a context of "
            f"{found[1]}, and base model {info.name!r} has {info.vocab_size} and {info.max_context}"
        )
    return model


def load_frozen(info: ModelInfo, device: torch.device, dtype: torch.dtype, folder: Path) -> BaseModel:
    """Weights of a full run, read from a folder to sample from.

    Raises:
        BadRequest: they do not fit the base model.
    """
    model = load_fitting(info, dtype, folder).to(device).eval().requires_grad_(False)
    return BaseModel(info, device, dtype, model)


# ---- memory ----


def parameter_count(folder: Path) -> int:
    """Parameters of the model in a folder, tied ones once; reads its configuration alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in model.parameters())


def sampling_bytes(parameters: int, dtype: torch.dtype) -> int:
    """About what a copy of a full run's weights takes, to sample from."""
    return dtype.itemsize * parameters


def training_bytes(parameters: int, dtype: torch.dtype) -> int:
    """What a full run takes, besides the activations of a pass."""
    # Weights, gradients, those of a request that may still fail, and Adam's two moments.
    fp32 = 5 * 4 * parameters
    return fp32 if dtype == torch.float32 else fp32 + dtype.itemsize * parameters


# ---- half precision ----


def _multiplies_in_linear_layers_alone(model: Any) -> bool:
    """Whether every matrix but the embedding is one that a base model's bank wraps (lora.py)."""
    covered = {
        id(module.weight)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and target_kind(path) is not None
    }
    covered.add(id(model.get_input_embeddings().weight))
    return all(parameter.ndim < 2 or id(parameter) in covered for parameter in model.parameters())


def _input_in_the_weights_dtype(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])
