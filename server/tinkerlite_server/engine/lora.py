"""LoRA: adapters of many runs over one frozen base model.

    y = x W^T + (alpha / rank) (x A^T) B^T      A (rank, in), B (out, rank)

Targets are wrapped once per base model; which rows of a pass use which adapter travels with
the pass (`AdapterRows`), so one pass serves several runs. B starts at zero: a fresh adapter
changes nothing. Knows nothing about optimizers, losses or files.

Source: Hu et al. 2021, eq. 3 (arXiv:2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two factors at one target: A (rank, in) and B (out, rank)."""

    a: Tensor
    b: Tensor


class Adapter:
    """The LoRA factors of one run or one sampler, by module path."""

    def __init__(self, config: AdapterConfig, pairs: Mapping[str, LoraPair]) -> None:
        self.config = config
        self.scale = config.alpha / config.rank
        self.pairs = dict(pairs)

    @property
    def trainable(self) -> bool:
        """Whether its factors may still change."""
        return any(pair.a.requires_grad for pair in self.pairs.values())

    @classmethod
    def fresh(cls, config: AdapterConfig, targets: Mapping[str, nn.Linear]) -> Adapter:
        """A trainable fp32 adapter: A uniform in +-1/sqrt(in) from the seed, B zero (PEFT's default).

        Raises:
            BadRequest: it is to train layers of a kind of which the model has none that adapters fit.
        """
        _check_kinds(targets, config)
        generator = torch.Generator().manual_seed(config.seed % 2**63)
        pairs: dict[str, LoraPair] = {}
        for path, linear in select_targets(targets, config).items():
            bound = 1 / math.sqrt(linear.in_features)
            a = torch.empty(config.rank, linear.in_features).uniform_(-bound, bound, generator=generator)
            b = torch.zeros(linear.out_features, config.rank)
            device = linear.weight.device
            pairs[path] = LoraPair(a.to(device).requires_grad_(), b.to(device).requires_grad_())
        return cls(config, pairs)

    def frozen_copy(self, dtype: torch.dtype) -> Adapter:
        """A copy for sampling, in the base model's dtype; later steps do not change it."""
        copies = {
            path: LoraPair(pair.a.detach().to(dtype, copy=True), pair.b.detach().to(dtype, copy=True))
            for path, pair in self.pairs.items()
        }
        return Adapter(self.config, copies)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every factor as (`path.lora_A` or `path.lora_B`, tensor), in a fixed order."""
        for path, pair in self.pairs.items():
            yield f"{path}.lora_A", pair.a
            yield f"{path}.lora_B", pair.b

    def delta(self, path: str, x: Tensor) -> Tensor | None:
        """What this adapter adds to the target's output for inputs x (rows, in); None if nothing."""
        pair = self.pairs.get(path)
        if pair is None:
            return None
        return F.linear(F.linear(x, pair.a.to(x.dtype)) * self.scale, pair.b.to(x.dtype))


@dataclass(frozen=True, eq=False)
class AdapterRows:
    """Which rows of a pass one adapter serves; `rows` None means all of them."""

    adapter: Adapter
    rows: Tensor | None


def adapter_rows(per_row: Sequence[tuple[Adapter | None, int]], device: torch.device) -> list[AdapterRows]:
    """Assign rows to adapters, from runs of (adapter, number of rows) in the order of the stream."""
    total = sum(count for _, count in per_row)
    spans: dict[int, tuple[Adapter, list[Tensor]]] = {}
    start = 0
    for adapter, count in per_row:
        if adapter is not None and count:
            spans.setdefault(id(adapter), (adapter, []))[1].append(torch.arange(start, start + count))
        start += count
    assigned: list[AdapterRows] = []
    for adapter, pieces in spans.values():
        rows = torch.cat(pieces)
        assigned.append(AdapterRows(adapter, None if len(rows) == total else rows.to(device)))
    return assigned


class LoraBank:
    """The wrapped targets of one base model, and the adapters of the pass that is running."""

    def __init__(self, model: nn.Module) -> None:
        self.active: Sequence[AdapterRows] = ()
        self.targets: dict[str, nn.Linear] = {}
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and target_kind(path) is not None:
                self.targets[path] = module
                # The unembedding is not called through its module: logprobs.py reads its weight.
                if target_kind(path) != "unembed":
                    model.set_submodule(path, LoraLinear(module, path, self))

    def covers_products_of(self, model: Any) -> bool:
        """Whether every matrix but the embedding is a wrapped target: none is multiplied elsewhere."""
        wrapped = {id(linear.weight) for linear in self.targets.values()}
        wrapped.add(id(model.get_input_embeddings().weight))
        return all(parameter.ndim < 2 or id(parameter) in wrapped for parameter in model.parameters())


class LoraLinear(nn.Module):
    """A frozen linear layer plus the active adapters' deltas."""

    def __init__(self, base: nn.Linear, path: str, bank: LoraBank) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.bank = bank

    def forward(self, x: Tensor) -> Tensor:
        """x (..., rows, in) to (..., rows, out) in the weights' dtype; leading dimensions are 1."""
        x = x.to(self.base.weight.dtype)
        y = self.base(x)
        for assigned in self.bank.active:
            y = add_delta(y, x, assigned, self.path)
        return y


def add_delta(y: Tensor, x: Tensor, assigned: AdapterRows, path: str) -> Tensor:
    """y plus the adapter's delta on its rows (the dimension before the last)."""
    if assigned.rows is None:
        delta = assigned.adapter.delta(path, x)
        return y if delta is None else y + delta
    delta = assigned.adapter.delta(path, x.index_select(-2, assigned.rows))
    return y if delta is None else y.index_add(-2, assigned.rows, delta)


def target_kind(path: str) -> str | None:
    """ "attn", "mlp" or "unembed" for a module that adapters may change, None for others."""
    if path == "lm_head":
        return "unembed"
    parts = path.split(".")
    if "self_attn" in parts:
        return "attn"
    return "mlp" if "mlp" in parts else None


def select_targets(targets: Mapping[str, nn.Linear], config: AdapterConfig) -> dict[str, nn.Linear]:
    """The targets that this configuration trains."""
    wanted = _wanted(config)
    return {path: linear for path, linear in targets.items() if wanted[target_kind(path) or ""]}


def _wanted(config: AdapterConfig) -> dict[str, bool]:
    return {"attn": config.train_attn, "mlp": config.train_mlp, "unembed": config.train_unembed}


def _check_kinds(targets: Mapping[str, nn.Linear], config: AdapterConfig) -> None:
    there = {target_kind(path) for path in targets}
    for kind, wanted in _wanted(config).items():
        if wanted and kind not in there:
            raise BadRequest(
                f"train_{kind} is set, but this model has no layers of that kind that a LoRA adapter fits "
                "(linear ones in `self_attn` and `mlp`, and `lm_head`); turn it off"
            )
