"""Tiny models for tests: random weights, a real tokenizer, made in a fraction of a second.

They are ordinary transformers folders, so what loads them is the code that loads real models.
They know no language: their distributions are peaked but meaningless.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Arch = Literal["llama", "qwen2", "qwen3"]

ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases on q, k and v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # RMSNorm on each head's q and k
}

END_OF_TEXT, IM_START, IM_END = 0, 1, 2
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FEWEST_TOKENS = len(SPECIAL_TOKENS) + 256

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEXT = """\
Train language models through four verbs: sample, compute the logprobs, go forward and backward, then
take a step of the optimizer. The sampler makes tokens and the trainer makes gradients. A rollout is the
act, a trajectory is the record, and a group has the trajectories of one prompt.
What is the capital of France? The capital of France is Paris. What is two and three? It is five.
system user assistant: You are a helpful assistant. Please answer with one word, yes or no.
def reverse_kl(student, teacher):
    return [s - t for s, t in zip(student, teacher)]
Every good boy does fine when there is enough time for work and for play; some would rather read about
mathematics, where each number follows from those before it, as the night follows the day.
"""


def make_tiny_model(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 512,
    extra_rows: int = 0,
    max_context: int = 512,
    seed: int = 0,
    tie_embeddings: bool = True,
    arch: Arch = "llama",
    text: str = TEXT,
) -> Path:
    """Write config, fp32 safetensors, generation config and tokenizer into `folder`; return it.

    Models of one `vocab_size` and `text` share a tokenizer, whatever their other sizes.

    Args:
        folder: made if it does not exist.
        vocab_size: tokens in the tokenizer: 3 special ones, 256 bytes, the rest merges.
        extra_rows: rows of the embedding beyond the tokenizer's tokens (a padded vocabulary).
        seed: of the weights alone.
        text: what the merges are learned from; another text gives another vocabulary of the same size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, vocab_size=vocab_size, max_context=max_context, text=text)
    config_class, model_class = ARCHITECTURES[arch]
    config = config_class(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab_size + extra_rows,
        max_position_embeddings=max_context,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=IM_START,
        eos_token_id=IM_END,
        pad_token_id=IM_END,
        dtype="float32",
    )
    model = model_class(config)
    fill(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=IM_START, eos_token_id=IM_END, pad_token_id=IM_END
    )
    model.save_pretrained(folder)
    return folder


def fill(model: PreTrainedModel, seed: int) -> None:
    """Random weights under which every parameter matters: peaked logits, uneven norms, non-zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            value = noise * 2.0 / math.sqrt(model.config.hidden_size)
        else:
            value = noise * 1.2 / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(value)


def make_tokenizer(folder: Path, *, vocab_size: int, max_context: int, text: str) -> None:
    """A byte-level BPE tokenizer with single digits and a ChatML template: any text round-trips."""
    if vocab_size < FEWEST_TOKENS:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone are {FEWEST_TOKENS}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text], trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text yields {tokenizer.get_vocab_size()} tokens, not {vocab_size}: "
            "give a longer text or a smaller vocab_size"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_context,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
