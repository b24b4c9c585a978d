"""The official cookbook's recipes, each on little data, each improving what it trains.

Data and sizes are ours, through the cookbook's own configurations; the loops, losses, renderers and
datasets are the cookbook's. What improved is read from the metrics that a recipe writes.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from statistics import mean

import chz
import datasets
import pytest
from served_tokenizer import register_served_tokenizer
from tinker_cookbook import renderers
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import (
    DistillationDatasetConfig,
    PromptOnlyDataset,
    TeacherConfig,
)
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.recipes.math_rl import train as math_rl
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

RENDERER = "qwen3_instruct"
"""ChatML, which is what the model was trained on."""
RANK = 8

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
QUESTIONS = [f"Which number comes after {number}?" for number in NUMBERS]
ANSWERS = [f"{number.capitalize()}." for number in [*NUMBERS[1:], "nine"]]
"""In a word, where the model would write a sentence."""


@pytest.fixture(scope="module", autouse=True)
def tokenizer(url: str, base_model: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """There is no hub here; the server has the model, so it has the tokenizer."""
    register_served_tokenizer(url, base_model, tmp_path_factory.mktemp("tokenizer"))


def figures(log_path: Path, name: str) -> list[float]:
    """One metric, step by step, as the recipe wrote it."""
    rows = [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def chat_data(base_model: str, batch_size: int) -> ChatDatasetBuilderCommonConfig:
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=base_model, renderer_name=RENDERER, max_length=128, batch_size=batch_size
    )


@pytest.fixture(scope="module")
def fine_tuned(url: str, base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a supervised run, which learned to answer in a word."""
    log_path = tmp_path_factory.mktemp("supervised")
    conversations = log_path / "conversations.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    conversations.write_text("\n".join(json.dumps(line) for line in lines))
    config = supervised.Config(
        log_path=str(log_path / "run"),
        model_name=base_model,
        recipe_name="tests",
        renderer_name=RENDERER,
        dataset_builder=FromConversationFileBuilder(
            common_config=chat_data(base_model, 8), file_path=str(conversations)
        ),
        learning_rate=2e-3,
        lr_schedule="constant",
        num_epochs=3,
        lora_rank=RANK,
        base_url=url,
        save_every=0,
        eval_every=0,
        infrequent_eval_every=0,
    )
    asyncio.run(supervised.main(config))
    return log_path / "run"


def test_supervised_fine_tuning_lowers_the_loss(fine_tuned: Path):
    loss = figures(fine_tuned, "train_mean_nll")
    assert len(loss) == 3
    assert loss[-1] < 0.5 * loss[0], loss


@chz.chz
class Brevity(ComparisonDatasetBuilder):
    """An answer in a word is preferred to one in a sentence."""

    def get_train_and_test_datasets(self) -> tuple[datasets.Dataset, None]:
        return datasets.Dataset.from_dict({"question": QUESTIONS, "answer": ANSWERS}), None

    def example_to_labeled_comparison(self, example: dict[str, str]) -> LabeledComparison:
        sentence = f"The number that comes after it is {example['answer'].lower()}"
        comparison = Comparison(
            prompt_conversation=[{"role": "user", "content": example["question"]}],
            completion_A=[{"role": "assistant", "content": example["answer"]}],
            completion_B=[{"role": "assistant", "content": sentence}],
        )
        return LabeledComparison(comparison=comparison, label="A")


def test_preference_optimization_widens_the_margin(url: str, base_model: str, tmp_path: Path):
    config = train_dpo.Config(
        log_path=str(tmp_path),
        model_name=base_model,
        recipe_name="tests",
        renderer_name=RENDERER,
        dataset_builder=DPODatasetBuilderFromComparisons(
            common_config=chat_data(base_model, 4), comparison_builder=Brevity()
        ),
        learning_rate=1e-3,
        lr_schedule="constant",
        num_epochs=2,
        max_steps=3,
        dpo_beta=0.1,
        lora_rank=RANK,
        base_url=url,
        save_every=0,
        eval_every=0,
        infrequent_eval_every=0,
    )
    train_dpo.main(config)
    margin, loss = figures(tmp_path, "margin"), figures(tmp_path, "dpo_loss")
    assert len(margin) == 3
    assert abs(margin[0]) < 0.01, "a fresh adapter prefers nothing"
    assert margin[-1] > 0.3, margin
    assert loss[-1] < loss[0]
    assert figures(tmp_path, "accuracy")[-1] == 1.0


@chz.chz
class Questions(RLDatasetBuilder):
    """Prompts alone: the teacher is the only one who judges."""

    model_name_for_tokenizer: str
    repeats: int

    async def __call__(self) -> tuple[PromptOnlyDataset, None]:
        tokenizer = get_tokenizer(self.model_name_for_tokenizer)
        return PromptOnlyDataset(
            prompts=QUESTIONS * self.repeats,
            batch_size=len(QUESTIONS),
            group_size=8,
            renderer=renderers.get_renderer(RENDERER, tokenizer=tokenizer),
            tokenizer=tokenizer,
        ), None


def test_on_policy_distillation_closes_in_on_the_teacher(
    url: str, base_model: str, fine_tuned: Path, tmp_path: Path
):
    checkpoints = [json.loads(line) for line in (fine_tuned / "checkpoints.jsonl").read_text().splitlines()]
    teacher = TeacherConfig(base_model=base_model, load_checkpoint_path=checkpoints[-1]["sampler_path"])
    config = train_on_policy.Config(
        log_path=str(tmp_path),
        model_name=base_model,
        recipe_name="tests",
        renderer_name=RENDERER,
        dataset_configs=[
            DistillationDatasetConfig(
                dataset_builder=Questions(model_name_for_tokenizer=base_model, repeats=10),
                teacher_config=teacher,
                groups_per_batch=len(QUESTIONS),
            )
        ],
        learning_rate=1e-3,
        max_tokens=4,
        lora_rank=RANK,
        base_url=url,
        save_every=0,
        eval_every=0,
    )
    asyncio.run(train_on_policy.main(config))
    kl = figures(tmp_path, "teacher_kl")
    assert len(kl) == 10
    assert mean(kl[-3:]) < 0.5 * mean(kl[:3]), kl


def test_reinforcement_learning_on_arithmetic_raises_the_reward(url: str, base_model: str, tmp_path: Path):
    """The model is too small to learn to add two-digit numbers in a few steps. What it learns is worth a
    tenth of the reward: to answer and stop, where it was cut off before."""
    config = math_rl.CLIConfig(
        model_name=base_model,
        renderer_name=RENDERER,
        lora_rank=RANK,
        env="arithmetic",
        group_size=4,
        groups_per_batch=8,
        learning_rate=1e-3,
        max_tokens=5,
        loss_fn="importance_sampling",
        log_path=str(tmp_path),
        base_url=url,
        max_steps=6,
        eval_every=0,
        save_every=0,
        behavior_if_log_dir_exists="delete",
    )
    asyncio.run(math_rl.cli_main(config))
    reward, correct = figures(tmp_path, "env/all/reward/total"), figures(tmp_path, "env/all/correct")
    learned = [total - luck for total, luck in zip(reward, correct, strict=True)]
    assert len(learned) == 6
    assert learned[0] < -0.02, "the first answers are cut off"
    assert mean(learned[-2:]) > 0.5 * learned[0], learned
