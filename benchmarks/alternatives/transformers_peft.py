"""What others take for the same work, in this process: transformers for sampling and scoring, transformers
with PEFT for training. Batches are padded tensors, as these libraries want them.

They answer no HTTP requests, and `generate` is not asked for logprobs: both in their favour.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.busy_core import busy_core
from benchmarks.work import Ids, Job, Policy, Unavailable, Work, converse, policy, timed

Measured = dict[str, list[float]]

MICRO_BATCH_TOKENS = 2048
"""Tokens of a padded batch: enough for full speed, few enough that [tokens, vocabulary] logits fit."""
LOGITS_COPIES = 5
"""How many fp32 arrays of that size forward and backward hold at their worst."""
ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-12, "weight_decay": 0.0}


# ---- sampling ----


def generate(job: Job) -> Measured:
    """Sampled tokens per second of transformers' generate, on one batch of all prompts."""
    model = _with_lora(_model(job), job.work.rank)

    def once(repetition: int) -> None:
        _generate(model, job.work, job.work.draw(repetition, job.vocab_size))

    _generate(model, job.work.small(), job.work.small().draw(0, job.vocab_size))
    return {"tokens_per_second": [job.work.sampled_tokens / each for each in timed(once, job.repeats)]}


def _generate(model: Any, work: Work, drawn: list[list[Ids]]) -> Tensor:
    """Prompts with completions, (sequences, prompt + tokens)."""
    prompts = torch.stack([torch.from_numpy(group[0][: work.prompt]) for group in drawn])
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=work.samples,
            max_new_tokens=work.tokens,
            min_new_tokens=work.tokens,
        )
    assert output.shape == (work.sequences, work.prompt + work.tokens)
    return output


def sample_turns(job: Job) -> Measured:
    """Seconds of whole conversations: one batch a turn, read from its beginning, as generate is used."""
    model = _model(job)

    def once(repetition: int, work: Work = job.work) -> None:
        def answer(prompts: list[Ids]) -> list[list[int]]:
            turn = replace(work, prompt=len(prompts[0]), turns=1)
            output = _generate(model, turn, [[prompt] for prompt in prompts])
            return output[:, turn.prompt :].tolist()

        converse(work, repetition, job.vocab_size, answer)

    once(0, job.work.small())
    return {"seconds": timed(once, job.repeats)}


def generate_beside_a_busy_core(job: Job) -> Measured:
    """Share of the undisturbed rate that is left while another process keeps one core busy."""
    undisturbed = generate(job)["tokens_per_second"]
    with busy_core():
        disturbed = generate(job)["tokens_per_second"]
    return {"share": [each / median(undisturbed) for each in disturbed]}


# ---- scoring ----


def score(job: Job) -> Measured:
    """Tokens per second of a padded forward pass and the log-softmax of what follows each token."""
    _require_logits_memory(job)
    model = _model(job)

    def once(repetition: int, work: Work = job.work) -> None:
        _score(model, [ids for group in work.draw(repetition, job.vocab_size) for ids in group])

    once(0, job.work.small())
    return {"tokens_per_second": [job.work.total_tokens / each for each in timed(once, job.repeats)]}


def _score(model: Any, sequences: Sequence[Ids]) -> list[Tensor]:
    with torch.inference_mode():
        scored: list[Tensor] = []
        for batch in _micro_batches(sequences):
            tokens = torch.from_numpy(batch)
            scored += _target_logprobs(model, tokens[:, :-1], tokens[:, 1:])
        return scored


def _target_logprobs(model: Any, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """(B, T) log p of each target, fp32."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float()
    return -F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(
        targets_BT
    )


def _micro_batches(sequences: Sequence[Ids]) -> Iterator[NDArray[np.int64]]:
    """Sequences of one length, stacked, at most MICRO_BATCH_TOKENS at a time."""
    size = max(1, MICRO_BATCH_TOKENS // len(sequences[0]))
    for start in range(0, len(sequences), size):
        yield np.stack(sequences[start : start + size])


# ---- training ----


def train(job: Job) -> Measured:
    """Tokens per second of importance sampling and AdamW through PEFT, and the process's peak memory."""
    _require_logits_memory(job)
    model = _with_lora(_model(job), job.work.rank, trains=True)
    optimizer = _optimizer(model)

    def once(repetition: int, work: Work = job.work) -> None:
        drawn = work.draw(repetition, job.vocab_size)
        _update(model, optimizer, [policy(ids, work.prompt) for group in drawn for ids in group])

    once(0, job.work.small())
    rates = [job.work.total_tokens / each for each in timed(once, job.repeats)]
    return {"tokens_per_second": rates, "peak_rss_mib": [_peak_rss_mib()]}


def _update(model: Any, optimizer: torch.optim.Optimizer, examples: Sequence[Policy]) -> None:
    size = max(1, MICRO_BATCH_TOKENS // len(examples[0].tokens))
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        tokens, targets, logprobs, advantages = (
            torch.stack([torch.from_numpy(getattr(example, name)) for example in batch])
            for name in ("tokens", "targets", "logprobs", "advantages")
        )
        with _autocast(model):
            ratio = (_target_logprobs(model, tokens, targets) - logprobs).exp()
        # Masked, as the exponent means nothing on given positions.
        (-torch.where(advantages != 0, ratio * advantages, 0.0).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def rl_step(job: Job) -> Measured:
    """Seconds of one step: generate groups, score them for their logprobs, train on centred rewards."""
    _require_logits_memory(job)
    student = _with_lora(_model(job), job.work.rank, trains=True)
    optimizer = _optimizer(student)

    def once(repetition: int, work: Work = job.work) -> None:
        drawn = work.draw(repetition, job.vocab_size)
        with _autocast(student):
            sampled = [row.numpy() for row in _generate(student, work, drawn)]
            scored = _score(student, sampled)
        rewards = np.array([ids[work.prompt] % 2 for ids in sampled], np.float32).reshape(-1, work.samples)
        centred = (rewards - rewards.mean(axis=1, keepdims=True)).ravel()
        examples: list[Policy] = []
        for ids, own, advantage in zip(sampled, scored, centred, strict=True):
            advantages = np.full(len(ids) - 1, advantage, np.float32)
            advantages[: work.prompt - 1] = 0.0
            examples.append(Policy(ids[:-1], ids[1:], own.numpy(), advantages))
        _update(student, optimizer, examples)

    once(0, job.work.small())
    return {"seconds": timed(once, job.repeats)}


def opd_step(job: Job) -> Measured:
    """Seconds of one step: generate from the student, score with student and teacher, train.

    generate returns no logprobs here, so the student scores its own samples once more.
    """
    _require_logits_memory(job)
    student, teacher = _with_lora(_model(job), job.work.rank, trains=True), _model(job)
    optimizer = _optimizer(student)

    def once(repetition: int, work: Work = job.work) -> None:
        drawn = work.draw(repetition, job.vocab_size)
        with _autocast(student):
            sampled = [row.numpy() for row in _generate(student, work, drawn)]
            student_logprobs = _score(student, sampled)
        teacher_logprobs = _score(teacher, sampled)
        examples: list[Policy] = []
        for ids, own, graded in zip(sampled, student_logprobs, teacher_logprobs, strict=True):
            advantages = (graded - own).numpy()
            advantages[: work.prompt - 1] = 0.0
            examples.append(Policy(ids[:-1], ids[1:], own.numpy(), advantages))
        _update(student, optimizer, examples)

    once(0, job.work.small())
    return {"seconds": timed(once, job.repeats)}


# ---- latency ----


def request(job: Job) -> Measured:
    """Milliseconds of generate for one short prompt and one token, in process."""
    model = _model(job)
    work = replace(job.work, tokens=1)

    def once(repetition: int) -> None:
        _generate(model, work, work.draw(repetition, job.vocab_size))

    once(0)
    return {"milliseconds": [1e3 * each for each in timed(once, job.repeats)]}


_FIRST_TOKEN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
prompt = torch.arange(int(sys.argv[3]))[None]
model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1)
print("done", flush=True)
"""


def cold_start(job: Job) -> Measured:
    """Seconds from a fresh interpreter to the first token of generate, without any server."""
    seconds: list[float] = []
    for _ in range(job.repeats):
        command = [sys.executable, "-c", _FIRST_TOKEN, job.folder, job.dtype, str(job.work.prompt)]
        started = perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "done\n":
                    seconds.append(perf_counter() - started)
        if process.returncode:
            raise Unavailable(f"its process ended with status {process.returncode}")
    return {"seconds": seconds}


# ---- models ----


def _model(job: Job) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(job.folder, dtype=getattr(torch, job.dtype)).eval()
    # Completions have the length that was asked for.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _with_lora(model: Any, rank: int, *, trains: bool = False) -> Any:
    """Adapters where ours has them: on every linear layer, the unembedding included. Rank 0: none.

    Trained ones are fp32; their products are the model's dtype's, under `_autocast`.
    """
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model

    names = {path.rsplit(".", 1)[-1] for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=sorted(names))
    # Left to itself PEFT keeps factors in fp32, and multiplies in that.
    return get_peft_model(model, config, autocast_adapter_dtype=trains)


def _autocast(model: Any) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16)


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **ADAM)


# ---- memory ----


def _require_logits_memory(job: Job) -> None:
    """Skip rather than be killed half-way.

    Raises:
        Unavailable: the logits of a micro-batch would not fit.
    """
    needed = LOGITS_COPIES * 4 * min(MICRO_BATCH_TOKENS, job.work.total_tokens) * job.vocab_size
    available = _available_bytes()
    if available is not None and needed > available:
        raise Unavailable(
            f"padded logits need about {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are available"
        )


def _available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        listing = dict(line.split(":", 1) for line in lines)
        return int(listing["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def _peak_rss_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
