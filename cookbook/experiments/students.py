"""What experiments share around training: students, and the costs of their runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cookbook.experiments.experiment import Bench
from cookbook.experiments.nomenclator import NOMENCLATOR
from cookbook.ledger import Ledger, ModelShape, ledger
from cookbook.loop import Measure, TrainConfig, accuracy_measure, sampled_accuracy_measure
from cookbook.mathematics import MathTask, reasoning_examples
from cookbook.metrics import Row
from cookbook.renderers import RenderedExample, Renderer, Tokenizer, chatml
from cookbook.rollouts import Task
from cookbook.runs import choose
from cookbook.supervised import SupervisedConfig, with_answer
from cookbook.tasks import TASKS
from cookbook.teacher_probe import examine_teacher
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient, ServiceClient, TrainingClient

TrainingConfig = TypeVar("TrainingConfig", TrainConfig, SupervisedConfig)

TASKS_AT_ALL_SIZES: Mapping[str, Task] = {**TASKS, "nomenclator": NOMENCLATOR, "deepmath": MathTask()}


def task_named(name: str) -> Task:
    """One of the cookbook's tasks, the cipher, or mathematics at full size."""
    return choose("task", name, TASKS_AT_ALL_SIZES)


def examples_to_imitate(
    task: Task, renderer: Renderer, seed: int, *, longest: int
) -> Iterator[RenderedExample]:
    """Reasoning of OpenThoughts, of at most `longest` tokens; if that is 0, the task's own answers."""
    if longest:
        return reasoning_examples(renderer, seed, longest=longest)
    return (renderer.training_example(with_answer(problem)) for problem in task.training_problems(seed))


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How accuracy is measured."""

    problems: int = 200
    """Held-out ones."""
    samples: int = 1
    """Of each: avg@k at temperature 1. 0 asks once, greedily."""
    max_tokens: int = 16
    """Longest reply."""

    def measure(self, task: Task, renderer: Renderer, seed: int) -> Measure:
        """For `train` and `train_on_examples`."""
        if self.samples == 0:
            return accuracy_measure(task, renderer, self.problems, self.max_tokens)
        return sampled_accuracy_measure(
            task, renderer, self.problems, self.max_tokens, samples=self.samples, seed=seed
        )


ON_POLICY = 500_000
"""Added to the seed of a student that a teacher grades: its problems are not the teacher's lessons."""


def fresh_student(service: ServiceClient, model: str, rank: int, seed: int) -> TrainingClient:
    """A LoRA adapter that changes nothing yet or, of rank 0, all weights of the base model."""
    if rank == 0:
        return service.create_training_client(model)
    return service.create_lora_training_client(model, rank=rank, seed=seed)


def shape_of(trainer: TrainingClient, rank: int) -> ModelShape:
    """Dimensions of a student, for the ledger."""
    return ModelShape.of_tokenizer(trainer.get_tokenizer(), rank=rank, trains_adapter=rank > 0)


def seeded(config: TrainingConfig, seed: int) -> TrainingConfig:
    """The same run on other problems, with other draws."""
    return replace(config, seed=seed)


def saved_sampler(service: ServiceClient, trainer: TrainingClient, name: str) -> SamplingClient:
    """A sampler of the weights as they are now, which later steps leave alone."""
    path = trainer.save_weights_for_sampler(name).result().path
    assert path is not None  # named weights have a path
    return service.create_sampling_client(model_path=path)


def probed_teacher(
    bench: Bench, sampler: SamplingClient, student: Tokenizer, task: Task, renderer: Renderer
) -> Teacher:
    """A teacher for a student with this tokenizer, examined before anything depends on it.

    Raises:
        VocabularyMismatch, CapabilityError: see `Teacher` and `probe_teacher`.
    """
    teacher = Teacher(sampler, student)
    probe = examine_teacher(teacher, task, renderer, sampler.get_tokenizer())
    bench.console.print("\n".join(probe.lines()), markup=False)
    return teacher


def with_fresh_optimizer(service: ServiceClient, trainer: TrainingClient, name: str) -> TrainingClient:
    """The same weights in a run of their own, whose optimizer has no past."""
    return service.create_training_client_from_state(trainer.save_state(name).result().path)


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


def shapes_in(rows: Sequence[Row]) -> dict[str, ModelShape]:
    """Models' dimensions, as a note of the run "shapes" holds them."""
    [row] = rows
    return {name: ModelShape(**dimensions) for name, dimensions in row.items() if name != "run"}
