"""Runs: what a recipe needs around its one call. Flags, connection, student, teacher, and what is kept.

Knows nothing about how any of it trains.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from cookbook.byte_spans import ByteSpanTeacher
from cookbook.command_line import parse
from cookbook.keeping import Keeping, kept_run
from cookbook.ledger import ModelShape, UnknownShape, ledger, print_ledger
from cookbook.loop import BeforeStep, Record, TrainConfig
from cookbook.metrics import Row, read_metrics
from cookbook.renderers import RENDERERS, Renderer, RendererError, Tokenizer
from cookbook.rollouts import Task
from cookbook.run_folder import Checkpoint
from cookbook.supervised import SupervisedConfig
from cookbook.table import ON_POLICY_COLUMNS, SUPERVISED_COLUMNS
from cookbook.tasks import TASKS, with_format_credit
from cookbook.teacher_probe import examine_teacher
from cookbook.teachers import Teacher, VocabularyMismatch
from tinkerlite import (
    APIConnectionError,
    APIStatusError,
    CapabilityError,
    ClientConfig,
    RequestFailedError,
    SamplingClient,
    ServiceClient,
    TinkerError,
    TrainingClient,
)

Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained, and where."""

    base_url: str = ""
    """Server that trains and samples; local://MODEL runs one in this process. If not given,
    TINKERLITE_BASE_URL, else http://127.0.0.1:8000."""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Base model of fresh weights, by the server's name for it."""
    start_from: str = ""
    """Saved training weights (tinker://...) to start from, of whatever base model and rank they are."""
    rank: int = 32
    """Rank of a fresh LoRA adapter; 0 trains all weights instead, at about a tenth of the learning rate."""
    task: str = "sums"
    """One of number-words, number-lists, larger, largest, sums, sort-letters."""
    renderer: str = "chatml"
    """Layout of prompts: chatml (no system line), or template (the model's own)."""


@dataclass(frozen=True, kw_only=True)
class TeacherSetup:
    """What the student is compared with."""

    teacher: str = ""
    """Saved sampler weights (tinker://...) or a base model; the student's own base if not given."""
    teacher_renderer: str = ""
    """Layout of the prompts that the teacher reads; the student's if not given."""
    byte_spans: bool = False
    """Compare with a teacher of another tokenizer, by spans of bytes."""
    format_credit: bool = True
    """Pay a little for the form of an answer, so that RL can start where nothing is right yet."""


@dataclass(frozen=True)
class SupervisedRun:
    """An opened run: everything that the supervised loop takes."""

    config: SupervisedConfig
    student: TrainingClient
    task: Task
    renderer: Renderer
    record: Record
    earlier: Sequence[Row]
    checkpoint: BeforeStep


@dataclass(frozen=True)
class OnPolicyRun:
    """An opened run: everything that the on-policy loop takes."""

    config: TrainConfig
    student: TrainingClient
    task: Task
    renderer: Renderer
    teacher: Teacher | ByteSpanTeacher
    record: Record
    earlier: Sequence[Row]
    checkpoint: BeforeStep


@contextmanager
def open_supervised_run(
    file: str, description: str | None, config: SupervisedConfig, argv: Sequence[str] | None
) -> Generator[SupervisedRun, None, None]:
    """Read the flags, connect, and save the student's weights when the block ends well.

    Args:
        file: the recipe's `__file__`; names the run.
        description: the recipe's docstring, for `--help`.
        config: the recipe's values; flags replace them.
        argv: None reads the process's own arguments.
    """
    name = Path(file).stem
    setup, keeping, config = parse(
        f"python -m cookbook.{name}", description, [Setup(), Keeping(), config], argv
    )
    keeping_it = kept_run(name, keeping, settings=_settings(setup, config), base_url=setup.base_url)
    with keeping_it as run, connect(setup.base_url) as service:
        student = _open_student(service, setup, config.seed, run.resumed)
        renderer = _renderer(setup.renderer, student.get_tokenizer())
        task = choose("task", setup.task, TASKS)
        with run.open(service, student, SUPERVISED_COLUMNS) as kept:
            yield SupervisedRun(config, student, task, renderer, kept.record, kept.earlier, kept.checkpoint)
        kept.checkpoint.finish(Checkpoint(step=config.steps, path=_save(student, name)))
        _print_cost(run.folder.path, student, None, service)


@contextmanager
def open_on_policy_run(
    file: str, description: str | None, config: TrainConfig, argv: Sequence[str] | None
) -> Generator[OnPolicyRun, None, None]:
    """As `open_supervised_run`, with a teacher, whose prompt is printed beside the student's."""
    name = Path(file).stem
    setup, compared, keeping, config = parse(
        f"python -m cookbook.{name}", description, [Setup(), TeacherSetup(), Keeping(), config], argv
    )
    settings = _settings(setup, compared, config)
    keeping_it = kept_run(name, keeping, settings=settings, base_url=setup.base_url)
    with keeping_it as run, connect(setup.base_url) as service:
        student = _open_student(service, setup, config.seed, run.resumed)
        renderer = _renderer(setup.renderer, student.get_tokenizer())
        task = choose("task", setup.task, TASKS)
        teacher_name = compared.teacher or _base_of(student, setup)
        teacher = _open_teacher(open_sampler(service, teacher_name), setup, compared, task, renderer)
        graded = with_format_credit(task) if compared.format_credit else task
        with run.open(service, student, ON_POLICY_COLUMNS) as kept:
            yield OnPolicyRun(
                config, student, graded, renderer, teacher, kept.record, kept.earlier, kept.checkpoint
            )
        kept.checkpoint.finish(Checkpoint(step=config.steps, path=_save(student, name)))
        _print_cost(run.folder.path, student, teacher_name, service)


@contextmanager
def connect(base_url: str) -> Generator[ServiceClient, None, None]:
    """A session on a server, closed at the end of the block; exits with advice if none answers."""
    try:
        # The table grows a row every few seconds: a line about waiting is worth more than a minute.
        service = ServiceClient(base_url=base_url or None, config=ClientConfig(progress_after_seconds=60))
    except APIConnectionError as error:
        raise SystemExit(
            f"{error}\nStart a server with `tinkerlite serve --model NAME`, or name one with --base-url."
        ) from error
    with service:
        yield service


def open_sampler(service: ServiceClient, name: str) -> SamplingClient:
    """A sampling client for saved sampler weights (tinker://...) or for a base model."""
    if name.startswith("tinker://"):
        return service.create_sampling_client(model_path=name)
    return service.create_sampling_client(base_model=name)


def _open_teacher(
    sampler: SamplingClient, setup: Setup, compared: TeacherSetup, task: Task, renderer: Renderer
) -> Teacher | ByteSpanTeacher:
    """Probed, with what it reads on the screen; exits where it cannot teach this student."""
    own, theirs = compared.teacher_renderer, sampler.get_tokenizer()
    try:
        if compared.byte_spans:
            layout = _renderer(own or setup.renderer, theirs, flag="--teacher-renderer")
            teacher = ByteSpanTeacher(sampler, renderer, layout)
            probe = examine_teacher(Teacher(sampler, theirs), task, layout, theirs, student=renderer)
        else:
            # Tokenizers of one vocabulary may still have templates of their own.
            layout = _renderer(own, theirs, flag="--teacher-renderer") if own else None
            teacher = Teacher(sampler, renderer.tokenizer, layout)
            probe = examine_teacher(teacher, task, renderer, theirs)
    except (VocabularyMismatch, RendererError, CapabilityError) as error:
        raise SystemExit(f"the teacher cannot be used: {error}") from error
    print("\n".join(probe.lines()))
    return teacher


def _renderer(name: str, tokenizer: Tokenizer, flag: str = "--renderer") -> Renderer:
    """By its name; exits where the tokenizer has no such layout."""
    try:
        return choose("renderer", name, RENDERERS)(tokenizer)
    except RendererError as error:
        others = " or ".join(other for other in RENDERERS if other != name)
        raise SystemExit(f"{flag} {name}: {error}\nThere is {flag} {others} as well.") from error


def _base_of(student: TrainingClient, setup: Setup) -> str:
    """The base model that the student trains, which is not the one named if it started from saved weights."""
    if not setup.start_from:
        return setup.model
    return student.get_info().model_data.model_name or setup.model


def choose(kind: str, name: str, options: Mapping[str, Choice]) -> Choice:
    """Look a name up; an unknown one exits with those that exist."""
    if name not in options:
        raise SystemExit(f"unknown {kind} {name!r}; choose one of {', '.join(options)}")
    return options[name]


def _settings(*configs: Any) -> dict[str, Any]:
    """What decides a run's rows: all values but the address of the server, which may move, and what saved
    weights bring along."""
    values = {name: value for config in configs for name, value in asdict(config).items()}
    del values["base_url"]
    if values["start_from"]:
        del values["model"], values["rank"]
    return values


def _open_student(
    service: ServiceClient, setup: Setup, seed: int, resumed: Checkpoint | None
) -> TrainingClient:
    if resumed:
        try:
            return service.create_training_client_from_state_with_optimizer(resumed.path)
        except APIStatusError as error:
            raise SystemExit(
                f"--resume: {error}\nThe checkpoint {resumed.path} is on the server that saved it, for "
                "two weeks; --base-url must lead there, or to one that has the same --data-dir."
            ) from error
        except RequestFailedError as error:
            raise SystemExit(
                f"--resume: {error}\nIf there is no room: the run that was killed has some until its session "
                "ends, ten minutes after its last sign of life. Nothing is lost; give the command again then."
            ) from error
    if setup.start_from:
        return service.create_training_client_from_state(setup.start_from)
    if setup.rank == 0:
        return service.create_training_client(setup.model)
    return service.create_lora_training_client(setup.model, rank=setup.rank, seed=seed)


def _print_cost(folder: Path, student: TrainingClient, teacher: str | None, service: ServiceClient) -> None:
    """The floating-point operations of a run by phase, where the models' shapes are known.

    Without a teacher it is as if the student's own base model had to write the task's answers.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    info = student.get_info()
    try:
        tokenizer = student.get_tokenizer()
        student_shape = ModelShape.of_tokenizer(
            tokenizer, rank=info.lora_rank or 0, trains_adapter=info.is_lora is not False
        )
        if teacher is None:
            teacher_shape = ModelShape.of_tokenizer(tokenizer)
        else:
            teacher_shape = ModelShape.of_tokenizer(
                open_sampler(service, teacher).get_tokenizer(), rank=_rank_of(teacher, service)
            )
    except (UnknownShape, TinkerError) as unknown:  # the run itself is done and saved
        print(f"operations     not counted: {unknown}")
        return
    print_ledger({folder.name: ledger(rows, student_shape, teacher_shape)}, Console(highlight=False))


def _rank_of(model: str, service: ServiceClient) -> int:
    """Of the adapter in saved weights; a base model has none."""
    if not model.startswith("tinker://"):
        return 0
    info = service.create_rest_client().get_weights_info_by_tinker_path(model).result()
    return info.lora_rank or 0


def _save(student: TrainingClient, name: str) -> str:
    """Save for going on (`--start-from`) and for sampling (`--teacher`), and say where; the former's path."""
    state = student.save_state(name)
    sampler = student.save_weights_for_sampler(name)
    print(f"to train on    --start-from {state.result().path}")
    print(f"as a teacher   --teacher {sampler.result().path}")
    return state.result().path
