"""What transformers' continuous batching takes in this process: paged attention over all requests.

By itself it lays out a cache of most of the machine's memory anew for every batch, which takes seconds; here
the cache has the size that the work needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.work import Ids, Job, Work, timed

Measured = dict[str, list[float]]

BLOCK_TOKENS, MOST_TOKENS = 256, 2048
"""Tokens of a block of its cache, and the most that a pass reads."""


def sample(job: Job) -> Measured:
    """Sampled tokens per second; each sample is a request of its own."""
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=getattr(torch, job.dtype), attn_implementation="sdpa"
    ).eval()

    def once(repetition: int, work: Work = job.work) -> None:
        drawn = work.draw(repetition, job.vocab_size)
        prompts: list[Ids] = [group[0][: work.prompt] for group in drawn for _ in group]
        settings = GenerationConfig(
            max_new_tokens=work.tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=-1,
            pad_token_id=0,
        )
        with torch.inference_mode():
            outputs = model.generate_batch(
                [ids.tolist() for ids in prompts],
                settings,
                ContinuousBatchingConfig(num_blocks=_blocks(work), max_batch_tokens=MOST_TOKENS),
            )
        lengths = np.array([len(output.generated_tokens) for output in outputs.values()])
        assert lengths.tolist() == [work.tokens] * len(prompts)

    once(0, job.warm_up)
    return {"tokens_per_second": [job.work.sampled_tokens / each for each in timed(once, job.repeats)]}


def _blocks(work: Work) -> int:
    """Blocks for all samples at once, and one more each for the tokens to come."""
    return work.sequences * (1 + -(-(work.prompt + work.tokens) // BLOCK_TOKENS))
