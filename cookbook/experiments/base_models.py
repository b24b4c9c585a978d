"""The models that an experiment begins with: a server's own, or made here from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cookbook.experiments.school import Schooled, write_schooled_model
from cookbook.scratch_model import ScratchConfig, write_scratch_model

BaseModel = str | ScratchConfig | Schooled
"""A name that the server knows, or a model to be made."""


def made_models(models: Sequence[BaseModel], folder: Path) -> list[str]:
    """Names for the server; models to be made are written into the folder first, equal ones once."""
    names: dict[BaseModel, str] = {}
    for index, model in enumerate(dict.fromkeys(models)):
        out = folder / f"model-{index}"
        match model:
            case str():
                names[model] = model
                continue
            case ScratchConfig():
                write_scratch_model(replace(model, out=str(out)))
            case Schooled():
                write_schooled_model(model, out)
        names[model] = str(out)
    return [names[model] for model in models]
