"""Optimizers: the family, which a model keeps for life, and the settings that come with every step."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tinkerlite.types.inputs import Params


class OptimizerConfig(Params):
    """An optimizer family. Of one that has no class here, name `type` and its own fields."""

    model_config = ConfigDict(extra="allow")

    type: str


class AdamOptimizerConfig(OptimizerConfig):
    """AdamW, the default."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["adamw"] = "adamw"  # pyright: ignore[reportIncompatibleVariableOverride]


class DimuonOptimizerConfig(OptimizerConfig):
    """Dimuon; the reference server does not offer it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["dimuon"] = "dimuon"  # pyright: ignore[reportIncompatibleVariableOverride]
    version: Literal[1] = 1


class AdamParams(Params):
    """AdamW for one optimizer step. Schedules live in the client: send what this step needs.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """

    learning_rate: float = Field(default=1e-4, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, ge=1e-37)
    """Never 0, nor what single precision takes for it: a parameter without gradients would step by 0/0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; multiplied by the learning rate."""
    grad_clip_norm: float = 0.0
    """Largest global gradient norm over all trained parameters; 0 or less is off."""


class OtherOptimParams(Params):
    """One step of another family. Of one that has no class here, name `type` and its own fields."""

    model_config = ConfigDict(extra="allow")

    type: str


class DimuonParams(OtherOptimParams):
    """One step of Dimuon; the reference server does not offer it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["dimuon"] = "dimuon"  # pyright: ignore[reportIncompatibleVariableOverride]
    learning_rate: float = Field(ge=0)
    grad_clip_norm: float = 0.0
    beta1: float = Field(default=0.9, ge=0, lt=1)


OptimParams = AdamParams | OtherOptimParams
