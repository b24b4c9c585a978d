"""The ledger against counts by hand and against torch's own counter."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from cookbook.advantages import AdvantageFn, group_relative, reverse_kl
from cookbook.ledger import Ledger, ModelShape, UnknownShape, forward_flops, ledger, training_flops
from cookbook.loop import TrainConfig, train
from cookbook.metrics import Row
from cookbook.renderers import Renderer
from cookbook.rollouts import Group
from cookbook.supervised import SupervisedConfig, train_supervised, with_answer
from cookbook.tasks import TASKS
from cookbook.teachers import Teacher
from cookbook.work import Work, as_row, from_row, sampling, scoring, training
from tinkerlite import ServiceClient

TASK = TASKS["larger"]
RANK = 4
# What tests/tiny.py makes: two layers of 64, four heads of 16 on two of keys, feed-forward 128, 512 tokens.
LAYER = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
TINY = ModelShape(
    hidden=64, layers=2, heads=4, kv_heads=2, head_size=16, intermediate=128, vocabulary=512, rank=RANK
)


# ---- shapes ----


def test_a_shape_is_read_from_the_config_that_the_server_hands_out(tiny_folder: Path):
    with ServiceClient(base_url=f"local://{tiny_folder}") as service:
        tokenizer = service.create_sampling_client(base_model=str(tiny_folder)).get_tokenizer()
    assert ModelShape.of_tokenizer(tokenizer, rank=RANK) == TINY


def test_the_parameters_of_smollm2_are_as_many_as_its_name_says():
    config = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    }
    shape = ModelShape.from_config(config, rank=32)
    assert shape.trunk + shape.unembedding == pytest.approx(134.5e6, rel=0.01)
    assert shape.trunk_adapter == 30 * 32 * (2 * 1152 + 2 * 768 + 3 * 2112)


def test_a_config_of_another_kind_is_refused_by_what_it_lacks():
    with pytest.raises(UnknownShape, match="has no 'hidden_size'"):
        ModelShape.from_config({"num_attention_heads": 12, "n_embd": 768})


def test_a_tokenizer_of_the_hub_has_its_models_shape_from_there(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a server that hands out no files names: not a folder here, but a model of the hub."""
    config = AutoConfig.from_pretrained(student_folder)
    monkeypatch.setattr(AutoConfig, "from_pretrained", {"org/model": config}.__getitem__)
    there = ModelShape.of_tokenizer(SimpleNamespace(name_or_path="org/model"), rank=4)
    assert there == ModelShape.of_tokenizer(SimpleNamespace(name_or_path=str(student_folder)), rank=4)


def test_a_tokenizer_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(UnknownShape, match=r"no config\.json beside the tokenizer"):
        ModelShape.of_tokenizer(SimpleNamespace(name_or_path=str(tmp_path)))


# ---- operations of one sequence ----


def counted(folder: Path, length: int, *, train: bool) -> int:
    """torch's count of a forward (and backward) pass; attention sees all pairs, masked or not."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.arange(5, 5 + length)[None]
    with FlopCounterMode(display=False) as counter:
        logits = model(ids).logits
        if train:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_forward_pass_costs_what_torch_counts(tiny_folder: Path, length: int):
    everything = Work(tokens=length, logits=length, attended=length * length)
    assert forward_flops(replace(TINY, rank=0), everything) == counted(tiny_folder, length, train=False)


@pytest.mark.parametrize("length", [7, 40])
def test_training_all_weights_costs_what_torch_counts(tiny_folder: Path, length: int):
    everything = Work(tokens=length, logits=length, attended=length * length, trained=length)
    full = replace(TINY, rank=0, trains_adapter=False)
    assert training_flops(full, everything) == pytest.approx(
        counted(tiny_folder, length, train=True), rel=0.02
    )


def test_training_an_adapter_leaves_out_the_gradients_of_frozen_weights():
    step = training(length=20, trained=5)
    frozen, full = (
        training_flops(replace(TINY, rank=0), step),
        training_flops(replace(TINY, rank=0, trains_adapter=False), step),
    )
    assert full - frozen == 2 * 20 * TINY.trunk + 2 * 5 * TINY.unembedding
    assert training_flops(TINY, step) - frozen == (
        6 * 20 * TINY.trunk_adapter + (2 * 20 + 4 * 5) * TINY.unembedding_adapter
    )


def test_works_add_up_and_survive_a_file():
    one, other = sampling(3, [2, 4]), scoring(7)
    assert one == Work(tokens=3 + 1 + 3, logits=6, attended=6 + 4 + (4 + 5 + 6))
    assert other == Work(tokens=7, logits=6, attended=28)
    assert (one + other) - other == one
    assert from_row(as_row({"sampling": one})) == {"sampling": one}


# ---- whole runs, counted by hand ----


def by_hand_forward(length: int, logits: int, *, start: int = 0) -> float:
    """Token by token and matrix by matrix: reading tokens `start` to `length` of a sequence."""
    flops = 0.0
    for place in range(start, length):
        for _layer in range(2):
            for rows, columns in LAYER:
                flops += 2 * rows * columns + 2 * RANK * (rows + columns)
            flops += 2 * 2 * 4 * 16 * (place + 1)
    return flops + (2 * 64 * 512 + 2 * RANK * (64 + 512)) * logits


def by_hand_training(length: int, trained: int) -> float:
    """Forward, gradients of activations, and gradients of the adapter."""
    flops = by_hand_forward(length, length)
    for place in range(length):
        for _layer in range(2):
            for rows, columns in LAYER:
                flops += 2 * rows * columns + 2 * RANK * (rows + columns) + 2 * RANK * (rows + columns)
            flops += 2 * 2 * 2 * 4 * 16 * (place + 1)
    return flops + (2 * 64 * 512 + 2 * 2 * RANK * (64 + 512)) * trained


def by_hand(groups: Sequence[Group], *, teacher: bool) -> Ledger:
    """What these rollouts cost, sequence by sequence."""
    sampled = trained = scored = 0.0
    for group in groups:
        prompt = len(group.trajectories[0].prompt_tokens)
        sampled += by_hand_forward(prompt, 0)
        for trajectory in group.trajectories:
            completion = len(trajectory.completion_tokens)
            sampled += by_hand_forward(prompt + completion - 1, completion, start=prompt)
            trained += by_hand_training(prompt + completion - 1, completion)
            scored += by_hand_forward(prompt + completion, prompt + completion - 1) if teacher else 0.0
    return Ledger(sampling=sampled, training=trained, scoring=scored)


def assert_close(ours: Ledger, hand: Ledger) -> None:
    for phase in ("sampling", "training", "scoring", "data"):
        assert getattr(ours, phase) == pytest.approx(getattr(hand, phase), rel=0.05), phase


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Any:
    with ServiceClient(base_url=f"local://{tiny_folder}") as client:
        yield client


@pytest.mark.parametrize("method", ["rl", "opd"])
def test_the_ledger_of_an_on_policy_recipe_is_its_hand_count(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer, method: str
):
    config = TrainConfig(
        steps=2, prompts_per_step=3, group_size=2, max_tokens=5, held_out=2, evaluate_every=1
    )
    student = service.create_lora_training_client(str(tiny_folder), rank=RANK, seed=0)
    teacher = Teacher(service.create_sampling_client(base_model=str(tiny_folder)), student.get_tokenizer())
    advantages = reverse_kl(teacher) if method == "opd" else group_relative
    seen: list[Group] = []

    def watched(groups: Sequence[Group]) -> Any:
        seen.extend(groups)
        return advantages(groups)

    # The teacher is watched in RL too, at every step: that is not a cost of the method.
    rows = run(config, student, renderer, watched, teacher)
    assert_close(ledger(rows, TINY, TINY), by_hand(seen, teacher=method == "opd"))
    assert_close(ledger(rows, TINY, TINY, until=1), by_hand(seen[:3], teacher=method == "opd"))
    assert ledger(rows, TINY).scoring == 0.0


def run(
    config: TrainConfig, student: Any, renderer: Renderer, advantages: AdvantageFn, teacher: Teacher
) -> list[Row]:
    return train(
        config,
        student,
        TASK,
        renderer=renderer,
        advantages=advantages,
        teacher=teacher,
        record=lambda row: None,
    )


def test_the_ledger_of_supervised_training_is_its_hand_count_with_data_free_or_paid(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer
):
    config = SupervisedConfig(steps=2, batch_size=3, held_out=2, max_tokens=5, evaluate_every=1)
    student = service.create_lora_training_client(str(tiny_folder), rank=RANK, seed=0)
    rows = train_supervised(config, student, TASK, renderer=renderer, record=lambda row: None)
    problems = TASK.training_problems(config.seed)
    trained = written = 0.0
    for _ in range(2 * 3):
        problem = next(problems)
        prompt = len(renderer.generation_prompt(problem.messages))
        length = len(renderer.training_example(with_answer(problem)).tokens)
        trained += by_hand_training(length - 1, length - prompt)
        written += by_hand_forward(length - 1, length - prompt)
    hand = Ledger(training=trained, data=written)
    assert_close(ledger(rows, TINY, TINY), hand)
    assert ledger(rows, TINY, TINY).with_free_data == pytest.approx(trained, rel=0.05)
    assert ledger(rows, TINY, TINY).with_paid_data == pytest.approx(trained + written, rel=0.05)
    assert ledger(rows, TINY).data == 0.0
