"""Schooling: a base model from scratch that chats and knows a company before an experiment begins.

What is asked of a pretrained model is asked of one that two cores train in minutes (`clerk`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cookbook.company import CompanyTask
from cookbook.experiments.clerk import ClerkTask, known_company, school_examples
from cookbook.measures import behaviour_measure, knowledge_measure, together
from cookbook.metrics import Row
from cookbook.renderers import chatml
from cookbook.scratch_model import ScratchConfig, write_scratch_model
from cookbook.supervised import SupervisedConfig, train_on_examples
from tinkerlite import ServiceClient

TESTED = 200
"""Prompts and questions in the examinations."""


@dataclass(frozen=True, kw_only=True)
class Schooled:
    """A model from scratch that goes to the clerk's school."""

    sizes: ScratchConfig
    training: SupervisedConfig
    """Of all weights."""


def write_schooled_model(model: Schooled, out: Path) -> list[Row]:
    """Write a folder that the server reads as any base model; returns the rows of the schooling.

    The training runs in this process.
    """
    raw = out.with_name(f"{out.name}-unschooled")
    write_scratch_model(replace(model.sizes, out=str(raw)))
    console = Console(highlight=False)
    console.print(f"schooling a model from scratch: {model.training.steps} steps")
    with ServiceClient(base_url=f"local://{raw}") as service:
        student = service.create_training_client(str(raw))
        renderer = chatml(student.get_tokenizer())
        task = CompanyTask(company=known_company())
        questions = task.held_out(TESTED)
        rows = train_on_examples(
            model.training,
            student,
            school_examples(renderer, model.training.seed),
            measure=together(
                behaviour_measure(ClerkTask().held_out(TESTED), renderer=renderer, max_tokens=24, seed=0),
                knowledge_measure(task, questions, renderer=renderer, max_tokens=8),
            ),
            record=lambda row: None,
        )
        console.print(
            f"schooled: it follows {rows[-1]['behaviour']:.0%} of the prompts, and knows "
            f"{rows[-1]['knowledge']:.0%} of the codes"
        )
        saved = student.save_weights_for_sampler("schooled").result().path
        assert saved is not None  # named weights have a path
        service.create_rest_client().download_checkpoint(saved, out).result()
    return rows


CLERK = Schooled(
    sizes=ScratchConfig(hidden=128, layers=3, heads=4, context=256),
    training=SupervisedConfig(
        steps=800, batch_size=64, learning_rate=3e-3, warmup_steps=20, evaluate_every=800
    ),
)
"""The model of the small settings."""
