"""A small model with random weights, to train from scratch.

The idea. Questions about a student and a larger teacher with one tokenizer need a pair of models that
two cores can train whole. This writes one: a Llama of any size in a folder that transformers and the
server read as any other, made without torch. Its tokenizer is bytes unless another is named, since the
49,152 tokens of SmolLM2 would be nine tenths of a model this small. Models made with the same
`--tokenizer` share a vocabulary, whatever their sizes.

The command:

    python -m cookbook.scratch_model --out models/small --layers 2 --hidden 128 --heads 4
    python -m cookbook.scratch_model --out models/large --layers 6 --hidden 384 --heads 6
    tinkerlite serve --model models/small --model models/large

What you should see. How many parameters were written, and how many of them are the embedding's. An
untrained model finds all tokens about equally likely, ln(vocabulary) nats each; train its weights with
`service.create_training_client("models/small")`, or `--rank 0` in a recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import transformers
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cookbook.command_line import parse
from tinkerlite import ServiceClient, TinkerError

# Two packages that say only part of their types.
_transformers: Any = transformers
_safetensors: Any = safetensors.numpy

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A model's sizes, its tokenizer, and where it goes."""

    out: str = ""
    """Folder to write; it must not hold a model yet."""
    layers: int = 4
    """Blocks of attention and feed-forward."""
    hidden: int = 256
    """Width of the residual stream."""
    heads: int = 4
    """Attention heads; they divide the width."""
    mlp: int = 0
    """Width of the feed-forward layers; 8/3 of the hidden width, in whole 32s, if 0."""
    context: int = 1024
    """Longest sequence, in tokens."""
    tie: bool = True
    """Use the embedding as the output layer, too."""
    tokenizer: str = "bytes"
    """bytes (256 of them and three special tokens), or the hub id or folder of a model to copy it from."""
    base_url: str = ""
    """Server that hands out the tokenizer, by its own name for the model, where there is no hub."""
    seed: int = 0
    """Of the weights."""


class ScratchModelError(ValueError):
    """Sizes that make no model, a folder in use, or a tokenizer that cannot be had."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    [config] = parse("python -m cookbook.scratch_model", __doc__, [ScratchConfig()], argv)
    try:
        print(write_scratch_model(config))
    except ScratchModelError as error:
        raise SystemExit(f"scratch_model: {error}") from error


def write_scratch_model(config: ScratchConfig) -> str:
    """Write config, weights and tokenizer; what was written, in words.

    Raises:
        ScratchModelError: see the class. Nothing is overwritten.
    """
    _check(config)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, special = (
        write_byte_tokenizer(folder, config.context)
        if config.tokenizer == "bytes"
        else _copy_tokenizer(config.tokenizer, config.base_url, folder)
    )
    weights = random_weights(config, vocabulary)
    _safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stated = _llama_config(config, vocabulary) | special
    (folder / "config.json").write_text(json.dumps(stated, indent=2) + "\n")
    total = sum(weight.size for weight in weights.values())
    ends = sum(weight.size for name, weight in weights.items() if "embed" in name or "lm_head" in name)
    return (
        f"{folder}: {total:,} parameters, {ends / total:.0%} of them the embedding's; {vocabulary} tokens, "
        f"context {config.context}, seed {config.seed}\nServe it:  tinkerlite serve --model {folder}"
    )


def random_weights(config: ScratchConfig, vocabulary: int) -> Weights:
    """A Llama's weights by transformers' names, fp32.

    Matrices are normal with variance 1 / inputs, so that each keeps the size of what it reads; those
    that write to the residual stream are smaller by sqrt(2 layers), as that many add up in it. The
    embedding's deviation is 0.02, which makes the first predictions nearly uniform.

    Source: Radford et al. 2019, section 2.3, for the residual stream and the embedding.
    """
    rng = np.random.default_rng(config.seed)

    def normal(rows: int, columns: int, deviation: float) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(deviation)

    hidden, mlp = config.hidden, _mlp_width(config)
    reads, writes = 1 / math.sqrt(hidden), 1 / math.sqrt(2 * config.layers)
    ones = np.ones(hidden, np.float32)
    weights: Weights = {"model.embed_tokens.weight": normal(vocabulary, hidden, 0.02)}
    for layer in range(config.layers):
        block = f"model.layers.{layer}"
        weights[f"{block}.input_layernorm.weight"] = ones.copy()
        for name in ("q", "k", "v"):
            weights[f"{block}.self_attn.{name}_proj.weight"] = normal(hidden, hidden, reads)
        weights[f"{block}.self_attn.o_proj.weight"] = normal(hidden, hidden, writes / math.sqrt(hidden))
        weights[f"{block}.post_attention_layernorm.weight"] = ones.copy()
        for name in ("gate", "up"):
            weights[f"{block}.mlp.{name}_proj.weight"] = normal(mlp, hidden, reads)
        weights[f"{block}.mlp.down_proj.weight"] = normal(hidden, mlp, writes / math.sqrt(mlp))
    weights["model.norm.weight"] = ones.copy()
    if not config.tie:
        weights["lm_head.weight"] = normal(vocabulary, hidden, 0.02)
    return weights


def write_byte_tokenizer(folder: Path, context: int) -> tuple[int, dict[str, int]]:
    """A tokenizer whose tokens are three special ones and the 256 bytes, with a ChatML template.

    Returns its size, and the ids that a model's configuration names.
    """
    alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer: Any = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    # Without the regular expression that cuts words, since there is nothing to merge within them.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return len(alphabet), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def _copy_tokenizer(name: str, base_url: str, folder: Path) -> tuple[int, dict[str, int]]:
    try:
        tokenizer: Any = (
            _served_tokenizer(name, base_url)
            if base_url
            else _transformers.AutoTokenizer.from_pretrained(name)
        )
    except (OSError, ValueError, TinkerError) as error:
        raise ScratchModelError(
            f"the tokenizer of {name!r} cannot be had: {str(error).splitlines()[0]}. Name a folder with one, "
            "a hub id, a server's model and its --base-url, or bytes"
        ) from error
    tokenizer.save_pretrained(folder)
    named = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    size = max(tokenizer.get_vocab().values()) + 1
    return size, {name: token for name, token in named.items() if token is not None}


def _served_tokenizer(name: str, base_url: str) -> Any:
    with ServiceClient(base_url=base_url) as service:
        return service.create_sampling_client(base_model=name).get_tokenizer()


def _llama_config(config: ScratchConfig, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": _mlp_width(config),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.hidden // config.heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": config.tie,
    }


def _mlp_width(config: ScratchConfig) -> int:
    return config.mlp or 32 * round(config.hidden * 8 / 3 / 32)


def _check(config: ScratchConfig) -> None:
    if not config.out:
        raise ScratchModelError("name a folder to write to: --out FOLDER")
    if (Path(config.out) / "config.json").exists():
        raise ScratchModelError(f"{config.out} holds a model already; name another folder, or delete it")
    for name in ("layers", "hidden", "heads", "context"):
        if getattr(config, name) < 1:
            raise ScratchModelError(f"--{name} is {getattr(config, name)}; it must be at least 1")
    if config.mlp < 0:
        raise ScratchModelError(f"--mlp is {config.mlp}; it must be at least 1, or 0 for a width that fits")
    if config.hidden % (2 * config.heads):
        raise ScratchModelError(
            f"--hidden is {config.hidden} and --heads {config.heads}; the width of a head, hidden / heads, "
            "must be a whole even number"
        )


if __name__ == "__main__":
    main()
