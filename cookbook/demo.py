"""The demo: one student learns the same task twice, by RL and by on-policy distillation (OPD).

    python -m cookbook.demo            (or `make demo`)

Starts a server on this machine, makes a teacher by supervised fine-tuning, trains two fresh students
with the same number of rollouts, and writes metrics.jsonl, summary.json, rollouts.json and report.html
to runs/demo. With --base-url it uses a running server instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from tinkerlite import SamplingClient, ServiceClient

from cookbook.advantages import AdvantageFn, group_relative, reverse_kl
from cookbook.evaluation import Evaluation, evaluate
from cookbook.exhibits import Exhibit, exhibit_rollouts
from cookbook.loop import TrainConfig, evaluation_figures, train
from cookbook.machine import hardware, peak_rss_mib
from cookbook.metrics import MetricsFile, Row
from cookbook.renderers import chatml
from cookbook.report import write_report
from cookbook.runs import connect
from cookbook.server_process import running_server
from cookbook.summary import comparison, run_figures, verdict
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.table import ON_POLICY_COLUMNS, SUPERVISED_COLUMNS, Column, StepTable
from cookbook.tasks import TASKS, with_partial_credit
from cookbook.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Every size of the demo. The defaults fit eight minutes on two cores."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Base model of the teacher and of both students."""
    task: str = "number-words"
    """A name in `tasks.TASKS`."""
    rank: int = 32
    """Of all three LoRA adapters."""
    teacher: SupervisedConfig = field(
        default_factory=lambda: SupervisedConfig(steps=15, batch_size=32, evaluate_every=15, max_tokens=8)
    )
    """How the teacher is made."""
    student: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20, prompts_per_step=8, group_size=4, max_tokens=8, evaluate_every=5
        )
    )
    """How both students are trained."""
    rl_kl_every: int = 5
    """Steps between measurements of the RL student's KL, which RL itself has no use for."""
    kl_clip: float | None = 5.0
    """Largest per-token KL that counts in a distillation step, in nats."""
    shown_problems: int = 5
    """Held-out problems whose completions the report shades."""
    shown_tokens: int = 20
    """Longest completion among those."""


class Demo:
    """The stages of the demo, on a server that runs."""

    def __init__(
        self, config: DemoConfig, service: ServiceClient, metrics: MetricsFile, console: Console
    ) -> None:
        self.config = config
        self.service = service
        self.metrics = metrics
        self.console = console
        self.task = TASKS[config.task]
        self.held_out = self.task.held_out(config.student.held_out)
        self.base = service.create_sampling_client(base_model=config.model)
        self.tokenizer = self.base.get_tokenizer()
        self.renderer = chatml(self.tokenizer)

    def run(self) -> tuple[dict[str, Any], list[Exhibit]]:
        """All stages in order: figures by model name, and completions for the report."""
        say = self.console.print
        problem = self.held_out[0]
        say(f"\n[bold]1. The base model[/bold], asked for example {problem.messages[-1]['content']!r}")
        before = self._evaluate_base()
        say(f"   accuracy {_percent(before)} on {len(self.held_out)} held-out problems, answering greedily\n")

        say("[bold]2. A teacher[/bold]: the same model after a little supervised fine-tuning (SFT)")
        teacher_sampler, teacher_row = self._make_teacher(before)
        teacher = Teacher(teacher_sampler, self.tokenizer)
        samplers = {"base": self.base, "teacher": teacher_sampler}
        figures: dict[str, Any] = {"base": evaluation_figures(before), "teacher": teacher_row}

        say("\n[bold]3. A student by RL[/bold]: one reward per completion")
        say(
            "   Exact answers alone would never start it: the base model gives none, every completion of a\n"
            "   group scores 0, and all advantages are 0. So near misses earn partial credit here."
        )
        samplers["rl"], figures["rl"] = self._train_student(
            "rl", group_relative, teacher, teacher_row, before, kl_every=self.config.rl_kl_every
        )
        say("\n[bold]4. A student by OPD[/bold]: the teacher's opinion of every token, no reward at all")
        samplers["opd"], figures["opd"] = self._train_student(
            "opd", reverse_kl(teacher, clip=self.config.kl_clip), teacher, teacher_row, before, kl_every=1
        )
        shown = self.held_out[: self.config.shown_problems]
        return figures, exhibit_rollouts(
            {name: samplers[name] for name in ("base", "rl", "opd")},
            shown,
            teacher,
            renderer=self.renderer,
            task=self.task,
            max_tokens=self.config.shown_tokens,
        )

    def _evaluate_base(self) -> Evaluation:
        return evaluate(
            self.base,
            self.held_out,
            renderer=self.renderer,
            task=self.task,
            max_tokens=self.config.student.max_tokens,
        )

    def _make_teacher(self, before: Evaluation) -> tuple[SamplingClient, Row]:
        config = self.config.teacher
        trainer = self._fresh_student(config.seed)
        with self._recording("teacher", "SFT", SUPERVISED_COLUMNS) as record:
            rows = train_supervised(
                config, trainer, self.task, renderer=self.renderer, record=record, start=before
            )
        path = trainer.save_weights_for_sampler("teacher").result().path
        figures = {key: rows[-1][key] for key in ("accuracy", "accuracy_interval")}
        return self.service.create_sampling_client(model_path=path), {**figures, "path": path}
