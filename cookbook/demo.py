"""The demo: one student learns a task twice, by RL and by on-policy distillation (OPD).

    python -m cookbook.demo            (or `make demo`)

Starts a server on this machine, makes a teacher by supervised fine-tuning, trains two fresh students
with the same number of rollouts, and writes metrics.jsonl, summary.json, rollouts.json and report.html
to runs/demo. With --base-url it uses a running server instead.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from cookbook.advantages import AdvantageFn, group_relative, reverse_kl
from cookbook.evaluation import Evaluation, evaluate
from cookbook.exhibits import Exhibit, exhibit_rollouts
from cookbook.file_lock import InUse
from cookbook.guards import RunStopped
from cookbook.keeping import recorder
from cookbook.ledger import Ledger, ModelShape, UnknownShape, ledger, print_ledger
from cookbook.loop import TrainConfig, evaluation_figures, train
from cookbook.machine import hardware, peak_rss_mib
from cookbook.metrics import MetricsFile, Row
from cookbook.renderers import chatml
from cookbook.report import write_report
from cookbook.run_folder import RunFolder, write_whole
from cookbook.runs import connect
from cookbook.server_process import running_server
from cookbook.summary import print_comparison, run_figures, verdict
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.table import ON_POLICY_COLUMNS, SUPERVISED_COLUMNS, accuracy_text
from cookbook.tasks import TASKS, with_format_credit
from cookbook.teacher_probe import examine_teacher
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient, ServiceClient, TrainingClient


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Every size of the demo. The defaults fit five minutes on two cores."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Base model of the teacher and of both students."""
    task: str = "larger"
    """A name in `tasks.TASKS`."""
    rank: int = 32
    """Of all three LoRA adapters."""
    teacher: SupervisedConfig = field(
        default_factory=lambda: SupervisedConfig(steps=12, batch_size=32, evaluate_every=12, max_tokens=4)
    )
    """How the teacher is made."""
    student: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=16, prompts_per_step=32, group_size=4, max_tokens=4, evaluate_every=4
        )
    )
    """How both students are trained."""
    rl_kl_every: int = 4
    """Steps between measurements of the RL student's KL, which RL itself has no use for."""
    kl_clip: float | None = 5.0
    """Largest per-token KL that counts in a distillation step, in nats."""
    shown_problems: int = 5
    """Held-out problems whose completions the report shades."""
    shown_tokens: int = 20
    """Longest completion among those."""


def seeded(config: DemoConfig, seed: int) -> DemoConfig:
    """The same demo on other problems, with other draws, from other adapters."""
    return replace(
        config, teacher=replace(config.teacher, seed=seed), student=replace(config.student, seed=seed)
    )


INTRODUCTION = """\
[bold]One student, two ways to learn.[/bold]
Both students start from {model}, see the same problems and make the same number of \
completions ({rollouts}). RL tells a student how good a whole completion was. On-policy distillation (OPD) \
lets a teacher grade every token of it. Everything runs on {hardware}, over HTTP.
"""

NEXT = """
[bold]What to try next[/bold] (after `. .venv/bin/activate`)
Open {report}: the curves, and completions shaded by what the teacher objects to.
See all the code that lies between the two students:
  diff cookbook/rl.py cookbook/opd.py
Distil again with your own settings (--help lists them), from the teacher that was just made:
  {reach}
"""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the stages found."""

    figures: dict[str, Any]
    """By model name, as in summary.json."""
    rl_rows: list[Row]
    opd_rows: list[Row]
    exhibits: list[Exhibit]
    ledgers: dict[str, Ledger] | None
    """Floating-point operations by run; None where the model's shape is not known."""


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

    def run(self) -> DemoResult:
        """All stages in order."""
        start = self._evaluate_base()
        teacher_sampler, teacher_rows, teacher_path = self._make_teacher(start)
        teacher = Teacher(teacher_sampler, self.tokenizer)
        probe = examine_teacher(teacher, self.task, self.renderer, self.tokenizer)
        self.console.print("\n".join(probe.lines()), markup=False, soft_wrap=True)
        self.console.print(
            "\n[bold]3. A student by RL.[/bold] Exact answers alone would never start it: the base model "
            "gives none, all completions of a group score 0 and all advantages are 0. So a reply that has at "
            "least the form of an answer earns 0.2, and the answer 1. Its KL to the teacher is only watched."
        )
        rl, rl_rows = self._train_student(
            "rl",
            replace(self.config.student, kl_every=self.config.rl_kl_every),
            group_relative,
            teacher,
            start,
        )
        self.console.print(
            "\n[bold]4. A student by OPD.[/bold] No reward at all: every sampled token is pushed by "
            "log p(teacher) - log p(student). The same loop, with one line changed."
        )
        distill = reverse_kl(teacher, clip=self.config.kl_clip)
        opd, opd_rows = self._train_student("opd", self.config.student, distill, teacher, start)
        last = teacher_rows[-1]
        return DemoResult(
            figures={
                "base": evaluation_figures(start),
                "teacher": {k: last[k] for k in ("accuracy", "accuracy_interval")} | {"path": teacher_path},
                "rl": run_figures(rl_rows, last["accuracy"]),
                "opd": run_figures(opd_rows, last["accuracy"]),
            },
            rl_rows=rl_rows,
            opd_rows=opd_rows,
            exhibits=self._exhibits(teacher, {"rl": rl, "opd": opd}),
            ledgers=self._ledgers({"teacher": teacher_rows, "rl": rl_rows, "opd": opd_rows}),
        )

    def _evaluate_base(self) -> Evaluation:
        problem = self.held_out[0]
        question, answer = escape(repr(problem.messages[-1]["content"])), escape(repr(problem.answer))
        self.console.print(
            f"[bold]1. The base model[/bold] on {len(self.held_out)} held-out problems such as "
            f"{question} (answer {answer}), greedily:"
        )
        evaluation = evaluate(
            self.base,
            self.held_out,
            renderer=self.renderer,
            task=self.task,
            max_tokens=self.config.student.max_tokens,
        )
        self.console.print(f"   accuracy {accuracy_text(evaluation_figures(evaluation))}")
        return evaluation

    def _make_teacher(self, start: Evaluation) -> tuple[SamplingClient, list[Row], str]:
        self.console.print(
            "\n[bold]2. A teacher:[/bold] the same model, after a little supervised fine-tuning."
        )
        trainer = self._fresh_student()
        record = recorder("teacher", self.metrics, SUPERVISED_COLUMNS, self.console)
        rows = train_supervised(
            self.config.teacher, trainer, self.task, renderer=self.renderer, record=record, start=start
        )
        path = trainer.save_weights_for_sampler("teacher").result().path
        assert path is not None  # named weights have a path
        return self.service.create_sampling_client(model_path=path), rows, path

    def _train_student(
        self, name: str, config: TrainConfig, advantages: AdvantageFn, teacher: Teacher, start: Evaluation
    ) -> tuple[SamplingClient, list[Row]]:
        student = self._fresh_student()
        record = recorder(name, self.metrics, ON_POLICY_COLUMNS, self.console)
        rows = train(
            config,
            student,
            with_format_credit(self.task),
            renderer=self.renderer,
            advantages=advantages,
            teacher=teacher,
            record=record,
            start=start,
        )
        return student.save_weights_and_get_sampling_client(), rows

    def _fresh_student(self) -> TrainingClient:
        return self.service.create_lora_training_client(
            self.config.model, rank=self.config.rank, seed=self.config.student.seed
        )

    def _ledgers(self, runs: dict[str, list[Row]]) -> dict[str, Ledger] | None:
        """All three have one shape. RL's teacher only watches, and the task writes the teacher's examples:
        neither costs anything."""
        try:
            shape = ModelShape.of_tokenizer(self.tokenizer, rank=self.config.rank)
        except UnknownShape as unknown:
            self.console.print(f"Operations not counted: {unknown}", markup=False)
            return None
        return {
            name: ledger(rows, shape, None if name == "teacher" else shape) for name, rows in runs.items()
        }

    def _exhibits(self, teacher: Teacher, students: dict[str, SamplingClient]) -> list[Exhibit]:
        return exhibit_rollouts(
            {"base": self.base, **students},
            self.held_out[: self.config.shown_problems],
            teacher,
            renderer=self.renderer,
            task=self.task,
            max_tokens=self.config.shown_tokens,
        )


def run_demo(config: DemoConfig, out: Path, base_url: str | None, console: Console) -> dict[str, Any]:
    """Run everything, write the files into `out`, print the story; returns the summary."""
    started = time.monotonic()
    student = config.student
    rollouts = student.steps * student.prompts_per_step * student.group_size
    where = f"the server at {base_url}" if base_url else f"this machine, {hardware()}"
    console.print(INTRODUCTION.format(model=config.model, rollouts=rollouts, hardware=where))
    data = out / "server"
    with ExitStack() as stack:
        stack.enter_context(RunFolder(out).held())
        _forget_last(out, None if base_url else data)
        url = base_url or stack.enter_context(running_server([config.model], data, out / "server.log"))
        service = stack.enter_context(connect(url))
        metrics = stack.enter_context(MetricsFile(out / "metrics.jsonl"))
        result = Demo(config, service, metrics, console).run()
    flags = [*(["--base-url", base_url] if base_url else []), "--out", str(out)]
    summary: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "cookbook.demo", "--seed", str(student.seed), *flags]),
        "model": config.model,
        "task": config.task,
        "rollouts": rollouts,
        "hardware": where if base_url else hardware(),
        "seconds": time.monotonic() - started,
        "peak_rss_mib": peak_rss_mib(),
        **result.figures,
        "config": asdict(config),
    }
    write_whole(out / "rollouts.json", result.exhibits)
    write_whole(out / "summary.json", summary)
    report = write_report(out)
    print_comparison(summary, result.rl_rows, result.opd_rows, console)
    if result.ledgers is not None:
        print_ledger(result.ledgers, console)
    console.print("\n".join(verdict(summary)))
    distil = f"python -m cookbook.opd --task {config.task} --teacher {result.figures['teacher']['path']}"
    serve = f"tinkerlite serve --model {config.model} --data-dir {data}"
    reach = f"{distil} --base-url {base_url}" if base_url else f"{serve}\n  {distil}"
    console.print(NEXT.format(report=report, reach=reach), soft_wrap=True)
    return summary


def _forget_last(out: Path, data: Path | None) -> None:
    """Remove what the last demo left in the folder, and the checkpoints that its server kept in `data`."""
    for name in ("summary.json", "rollouts.json", "report.html"):
        (out / name).unlink(missing_ok=True)
    if data is None or not data.exists():
        return
    if any(data.iterdir()) and not (data / "lock.sqlite").exists():
        raise SystemExit(f"{data} is there and holds no server's data; choose another folder with --out")
    shutil.rmtree(data)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns an exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cookbook.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", help="use this running server instead of starting one")
    parser.add_argument("--seed", type=int, default=0, help="of problems, rollouts and adapters [0]")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to [runs/demo]")
    given = parser.parse_args(argv)
    # Being told to end, or losing the terminal, must stop the server too: unwind instead of dying.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _unwind)
    try:
        config = seeded(DemoConfig(), given.seed)
        run_demo(config, given.out, given.base_url, Console(highlight=False))
    except RunStopped as reason:
        raise SystemExit(f"stopped at {reason}") from reason
    except InUse as error:
        raise SystemExit(f"{error}.") from error
    except KeyboardInterrupt:
        print("\nInterrupted; the server is stopped.", file=sys.stderr)
        return 130
    return 0


def _unwind(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
