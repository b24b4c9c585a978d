"""A saved adapter, placed on the device of its base model and checked against it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tinkerlite_server.engine.adapter_files import read_adapter
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter, LoraPair, select_targets
from tinkerlite_server.errors import BadRequest


def load_adapter(model: BaseModel, folder: Path, *, trainable: bool) -> Adapter:
    """The adapter in a folder, checked against the base model's targets.

    Raises:
        BadRequest: it adapts modules that this base model lacks, or of other sizes.
    """
    tensors, config = read_adapter(folder)
    expected = {
        path: (m.in_features, m.out_features)
        for path, m in select_targets(model.bank.targets, config).items()
    }
    found = {path: (a.shape[1], b.shape[0]) for path, (a, b) in tensors.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[:3]
        raise BadRequest(
            f"the adapter in {folder.name!r} does not fit base model {model.info.name!r}: "
            f"{len(found)} modules there, {len(expected)} expected, first differences {odd}"
        )
    dtype = torch.float32 if trainable else model.dtype
    # In the targets' order, not the file's: the order decides how the gradient norm is summed, and
    # a resumed run must step exactly as the first one would have.
    pairs = {path: _placed(tensors[path], model.device, dtype, trainable) for path in expected}
    return Adapter(config, pairs)


def _placed(
    factors: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype, trainable: bool
) -> LoraPair:
    # Copied: factors on a file's own alignment would round differently in the last bit.
    a, b = (factor.to(device, dtype, copy=True).requires_grad_(trainable) for factor in factors)
    return LoraPair(a, b)
