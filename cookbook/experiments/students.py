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
from tinkerlite.types import ModelInput, SamplingParams

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


def greedy_replies(
    sampler: SamplingClient, problems: Sequence[Problem], *, renderer: Renderer, max_tokens: int
) -> list[str]:
    """The likeliest reply to each problem, as text."""
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=renderer.stop_tokens)
    prompts = [ModelInput.from_ints(renderer.generation_prompt(problem.messages)) for problem in problems]
    pending = [sampler.sample(prompt, num_samples=1, sampling_params=greedy) for prompt in prompts]
    return [renderer.parse(future.result().sequences[0].tokens).text for future in pending]


def shapes_in(rows: Sequence[Row]) -> dict[str, ModelShape]:
    """Models' dimensions, as a note of the run "shapes" holds them."""
    [row] = rows
    return {name: ModelShape(**dimensions) for name, dimensions in row.items() if name != "run"}
