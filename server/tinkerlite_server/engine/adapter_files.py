"""Adapters on disk: PEFT's layout, so that PEFT, vLLM and others load what was trained here.

    adapter_model.safetensors   base_model.model.<module path>.lora_A.weight (r, in), .lora_B.weight (out, r)
    adapter_config.json         PEFT's own configuration
    tinkerlite.json             what PEFT has no place for: the seed, and which families of modules train
    optimizer.safetensors       Adam's moments and step count, where they were asked for

Reads and writes folders; makes nothing durable or atomic (the caller writes into a temporary
folder, calls `durable.sync_folder`, renames). Knows no model: whether the module paths exist in one is
the reader's to check. No pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinkerlite_server.engine.lora import target_kind
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
EXTRAS_FILE = "tinkerlite.json"
OPTIMIZER_FILE = "optimizer.safetensors"

PEFT_PREFIX = "base_model.model."

AdapterTensors = dict[str, tuple[Tensor, Tensor]]
"""Module path, such as `model.layers.0.self_attn.q_proj`, to (A (r, in), B (out, r))."""
Moments = dict[str, tuple[Tensor, Tensor]]
"""Parameter, such as `model.layers.0.self_attn.q_proj.lora_A`, to Adam's (first moment, second moment)."""


# ---- adapters ----


def write_adapter(
    folder: Path, tensors: Mapping[str, tuple[Tensor, Tensor]], config: AdapterConfig, base_model: str
) -> None:
    """Write the three files of an adapter into an existing folder, tensors as float32."""
    flat = {
        f"{PEFT_PREFIX}{path}.{side}.weight": tensor
        for path, pair in tensors.items()
        for side, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    save_file(
        {name: _at_rest(tensor) for name, tensor in flat.items()}, folder / ADAPTER_FILE, {"format": "pt"}
    )
    _write_json(folder / CONFIG_FILE, _peft_config(tensors, config, base_model))
    extras = {
        "seed": config.seed,
        "train_attn": config.train_attn,
        "train_mlp": config.train_mlp,
        "train_unembed": config.train_unembed,
    }
    _write_json(folder / EXTRAS_FILE, extras)


def read_adapter(folder: Path) -> tuple[AdapterTensors, AdapterConfig]:
    """Read an adapter that `write_adapter` or PEFT wrote; tensors come as float32 on the CPU.

    An adapter from elsewhere has no `tinkerlite.json`: its seed reads as 0, and the families that
    train are those it has tensors for. Rank-stabilised scaling, alpha / sqrt(r), is turned into
    an alpha that gives the same scale as alpha / r.

    Raises:
        BadRequest: a file is missing or corrupt, or the adapter is not plain LoRA.
    """
    stated = _read_config(folder)
    tensors = _pair_up(folder, _read_tensors(folder / ADAPTER_FILE), stated.r)
    families = {target_kind(path) for path in tensors}
    extras = _read_extras(folder) or _Extras(
        seed=0,
        train_attn="attn" in families,
        train_mlp="mlp" in families,
        train_unembed="unembed" in families,
    )
    config = AdapterConfig(
        rank=stated.r,
        alpha=stated.lora_alpha * (math.sqrt(stated.r) if stated.use_rslora else 1.0),
        seed=extras.seed,
        train_attn=extras.train_attn,
        train_mlp=extras.train_mlp,
        train_unembed=extras.train_unembed,
    )
    return tensors, config


# ---- optimizer state ----


def write_optimizer(folder: Path, moments: Mapping[str, tuple[Tensor, Tensor]], steps: int) -> None:
    """Write Adam's moments, and how many steps were taken, beside an adapter."""
    flat = {
        f"{moment}.{name}": _at_rest(tensor)
        for name, pair in moments.items()
        for moment, tensor in zip(("exp_avg", "exp_avg_sq"), pair, strict=True)
    }
    flat["step"] = torch.tensor(steps, dtype=torch.int64)
    save_file(flat, folder / OPTIMIZER_FILE, {"format": "pt"})


def read_optimizer(folder: Path) -> tuple[Moments, int]:
    """Read what `write_optimizer` wrote. Whether it belongs to a given adapter is the reader's to check.

    Raises:
        BadRequest: there is none, or it is corrupt.
    """
    file = folder / OPTIMIZER_FILE
    if not file.is_file():
        raise BadRequest(
            f"checkpoint {folder.name!r} has no optimizer state ({OPTIMIZER_FILE}); "
            "load its weights alone, and the optimizer starts afresh"
        )
    flat = _read_tensors(file)
    step = flat.pop("step", None)
    if step is None or step.numel() != 1:
        raise BadRequest(f"{_name(file)} has no step count")
    moments: Moments = {}
    for name in {key.partition(".")[2]: None for key in flat}:
        first, second = flat.pop(f"exp_avg.{name}", None), flat.pop(f"exp_avg_sq.{name}", None)
        if first is None or second is None or first.shape != second.shape:
            raise BadRequest(f"{_name(file)} lacks exp_avg or exp_avg_sq of {name}, or their shapes differ")
        moments[name] = (first, second)
    if flat:
        raise BadRequest(f"{_name(file)} holds {min(flat)}; expected only exp_avg, exp_avg_sq and step")
    return moments, int(step.item())


# ---- durability ----


# ---- PEFT's configuration ----


Record = TypeVar("Record", bound=BaseModel)


class _PeftConfig(BaseModel):
    """The fields of adapter_config.json that change the numbers."""

    model_config = ConfigDict(extra="ignore")

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    use_rslora: bool = False


class _Extras(BaseModel):
    """tinkerlite.json."""

    model_config = ConfigDict(extra="ignore")

    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool


PLAIN_LORA: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    # Other initialisations (PiSSA, OLoRA, ...) change the base weights that the adapter is added to.
    "init_lora_weights": (True, False, "gaussian"),
    "lora_bias": (False,),
    "use_dora": (False,),
    "alora_invocation_tokens": (None,),
    "alpha_pattern": ({}, None),
    "ensure_weight_tying": (False,),
    "layer_replication": (None,),
    "modules_to_save": ([], None),
    "rank_pattern": ({}, None),
    "target_parameters": ([], None),
    "trainable_token_indices": ([], {}, None),
    "use_bdlora": (None, False),
    "use_qalora": (False,),
}
"""Fields that, with any other value than these, mean something else than W + (alpha / r) B A."""


def _peft_config(tensors: Mapping[str, object], config: AdapterConfig, base_model: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": 0.0,
        # Last names, as every reader understands them. Each names all modules so called.
        "target_modules": sorted({path.rpartition(".")[2] for path in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _read_config(folder: Path) -> _PeftConfig:
    file = folder / CONFIG_FILE
    stated = _read_json(file)
    for field, allowed in PLAIN_LORA.items():
        if field in stated and stated[field] not in allowed:
            raise BadRequest(
                f"{_name(file)} has {field} = {stated[field]!r}; only plain LoRA is supported, "
                f"which has {field} = {allowed[0]!r}"
            )
    return _validated(_PeftConfig, stated, file)


def _read_extras(folder: Path) -> _Extras | None:
    file = folder / EXTRAS_FILE
    return _validated(_Extras, _read_json(file), file) if file.exists() else None


# ---- files ----


def _at_rest(tensor: Tensor) -> Tensor:
    """A contiguous float32 copy on the CPU that shares memory with nothing, as safetensors asks."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BadRequest(f"{_name(file)} is missing: this is not a saved adapter")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadRequest(f"{_name(file)} cannot be read as safetensors: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and name != "step":
            raise BadRequest(
                f"{_name(file)} holds {name} as {tensor.dtype}; weights are floating-point numbers"
            )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def _pair_up(folder: Path, flat: Mapping[str, Tensor], rank: int) -> AdapterTensors:
    file = _name(folder / ADAPTER_FILE)
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        path, dot, side = name.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".")
        if name != f"{PEFT_PREFIX}{path}{dot}{side}.weight" or side not in ("lora_A", "lora_B"):
            raise BadRequest(
                f"{file} holds {name}; expected only {PEFT_PREFIX}<module path>.lora_A.weight "
                "and .lora_B.weight"
            )
        sides.setdefault(path, {})[side] = tensor
    if not sides:
        raise BadRequest(f"{file} holds no tensors")
    for path, pair in sides.items():
        if pair.keys() != {"lora_A", "lora_B"}:
            raise BadRequest(f"{file} holds only {min(pair)} of {path}; both lora_A and lora_B are needed")
        down, up = pair["lora_A"], pair["lora_B"]
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != rank or up.shape[1] != rank:
            raise BadRequest(
                f"{file} holds {path} with A {tuple(down.shape)} and B {tuple(up.shape)}; with r = {rank} "
                f"in {CONFIG_FILE} they are ({rank}, in) and (out, {rank})"
            )
    return {path: (pair["lora_A"], pair["lora_B"]) for path, pair in sides.items()}


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BadRequest(f"{_name(file)} is missing: this is not a saved adapter")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRequest(f"{_name(file)} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{_name(file)} holds a {type(value).__name__}, not an object")
    return value


def _validated(model: type[Record], value: dict[str, Any], file: Path) -> Record:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{_name(file)}: {field}: {first['msg']} (found {value.get(field)!r})") from error


def _name(file: Path) -> str:
    """File and checkpoint, without the server's own folders, which are not the caller's business."""
    return f"{file.name} of checkpoint {file.parent.name!r}"
