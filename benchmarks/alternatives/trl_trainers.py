"""What one step of TRL's trainers takes: GRPO, and on-policy distillation. Both sample by `generate`.

Set up for speed on a CPU: the model in the dtype that is measured and no autocast, no recomputation of
activations. Adapters are on every linear layer but the unembedding, which these trainers do not train.
"""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.work import Job

Measured = dict[str, list[float]]

MICRO_BATCH_TOKENS = 2048
"""As in `transformers_peft`: tokens of a padded batch that goes forward and backward."""


def opd_step(job: Job) -> Measured:
    """Seconds of one step of DistillationTrainer, the teacher being the base model."""
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    def trainer(common: dict[str, Any], model: Any, lora: Any, prompts: Any, tokenizer: Any) -> Any:
        return DistillationTrainer(
            model=model,
            teacher_model=_model(job),
            args=DistillationConfig(**common),
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=lora,
        )

    return _steps(job, job.work.sequences, trainer)


def rl_step(job: Job) -> Measured:
    """Seconds of one step of GRPOTrainer, with a reward that costs nothing."""
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    def reward(completion_ids: list[list[int]], **_rest: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    def trainer(common: dict[str, Any], model: Any, lora: Any, prompts: Any, tokenizer: Any) -> Any:
        return GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(**common, num_generations=job.work.samples),
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=lora,
        )

    return _steps(job, job.work.groups, trainer)


def _steps(job: Job, prompts: int, make: Callable[..., Any]) -> Measured:
    """Seconds of each optimizer step after the first, with its sampling.

    Args:
        prompts: how many a step has.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.began = 0.0

        def on_step_begin(self, *_rest: Any, **_more: Any) -> None:
            self.began = perf_counter()

        def on_step_end(self, *_rest: Any, **_more: Any) -> None:
            self.seconds.append(perf_counter() - self.began)

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    texts = _texts(tokenizer, prompts * (job.repeats + 1), job.work.prompt)
    lora = LoraConfig(r=job.work.rank, lora_alpha=32, target_modules="all-linear")
    with TemporaryDirectory() as scratch:
        common = _arguments(job, job.repeats + 1, scratch)
        trainer = make(common, _model(job), lora, Dataset.from_dict({"prompt": texts}), tokenizer)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return {"seconds": clock.seconds[1:]}


def _arguments(job: Job, steps: int, folder: str) -> dict[str, Any]:
    """What the two trainers have in common. Adapters are fp32, their products the model's dtype's."""
    work = job.work
    most = max(1, MICRO_BATCH_TOKENS // (work.prompt + work.tokens))
    # Batches are all of one size.
    size = max(each for each in range(1, most + 1) if work.sequences % each == 0)
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": work.sequences // size,
        "max_steps": steps,
        "max_completion_length": work.tokens,
        "generation_kwargs": {"min_new_tokens": work.tokens},
        "temperature": 1.0,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _model(job: Job) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job.folder, dtype=getattr(torch, job.dtype))


def _texts(tokenizer: Any, count: int, length: int) -> list[str]:
    """Random texts of `length` tokens each, all different: these trainers take text, not tokens."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    while len(texts) < count:
        text = tokenizer.decode(rng.integers(0, len(tokenizer), length).tolist())
        # Not every sequence of tokens is what its text is split into.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        text = tokenizer.decode(ids)
        if len(ids) == length == len(tokenizer(text)["input_ids"]) and text not in texts:
            texts.append(text)
    return texts
