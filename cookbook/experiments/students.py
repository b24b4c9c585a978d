"""What experiments share around training: base models, students, and the costs of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cookbook.experiments.scratch import ScratchModel
from cookbook.ledger import Ledger, ModelShape, ledger
from cookbook.loop import TrainConfig
from cookbook.metrics import Row
from cookbook.renderers import Renderer, chatml
from cookbook.rollouts import Problem, Task
from cookbook.runs import choose
from cookbook.supervised import SupervisedConfig
from cookbook.tasks import TASKS
from tinkerlite import SamplingClient, ServiceClient, TrainingClient

TrainingConfig = TypeVar("TrainingConfig", TrainConfig, SupervisedConfig)

BaseModel = str | ScratchModel
"""A name that the server knows, or the dimensions of a model to be made."""


def base_models(models: Sequence[BaseModel], folder: Path, seed: int = 0) -> list[str]:
    """Names for the server; models to be made are written into the folder first."""
    return [
        model if isinstance(model, str) else model.write(folder / f"model-{index}", seed)
        for index, model in enumerate(models)
    ]


def task_named(name: str) -> Task:
    """One of the cookbook's tasks."""
    return choose("task", name, TASKS)


def fresh_student(service: ServiceClient, model: str, rank: int, seed: int) -> TrainingClient:
    """A LoRA adapter that changes nothing yet."""
    return service.create_lora_training_client(model, rank=rank, seed=seed)


def seeded(config: TrainingConfig, seed: int) -> TrainingConfig:
    """The same run on other problems, with other draws."""
    return replace(config, seed=seed)


def saved_sampler(service: ServiceClient, trainer: TrainingClient, name: str) -> SamplingClient:
    """A sampler of the weights as they are now, which later steps leave alone."""
    path = trainer.save_weights_for_sampler(name).result().path
    assert path is not None  # named weights have a path
    return service.create_sampling_client(model_path=path)


def renderer_of(trainer: TrainingClient | SamplingClient) -> Renderer:
    """The layout that all experiments use: plain ChatML."""
    return chatml(trainer.get_tokenizer())


def evaluated(rows: Sequence[Row]) -> list[Row]:
    """Rows in which accuracy was measured."""
    return [row for row in rows if row.get("accuracy") is not None]


def with_flops(
    rows: Sequence[Row], student: ModelShape, teacher: ModelShape | None
) -> list[tuple[Row, Ledger]]:
    """Each evaluated row with what it had cost to get there."""
    return [(row, ledger(rows, student, teacher, until=row["step"])) for row in evaluated(rows)]


def first_reaching(rows: Sequence[Row], target: float) -> Row | None:
    """The first evaluated row with at least this accuracy."""
    return next((row for row in evaluated(rows) if row["accuracy"] >= target), None)


def questions(problems: Sequence[Problem]) -> list[str]:
    """What the user asks in each."""
    return [problem.messages[-1]["content"] for problem in problems]


def shapes_in(rows: Sequence[Row]) -> dict[str, ModelShape]:
    """Models' dimensions, as a note of the run "shapes" holds them."""
    [row] = rows
    return {name: ModelShape(**dimensions) for name, dimensions in row.items() if name != "run"}
