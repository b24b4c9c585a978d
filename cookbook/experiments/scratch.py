"""Small models that nobody has trained yet: a Llama folder with random weights and a tokenizer of bytes.

Models of different sizes share the tokenizer, so one can teach the other. They are ordinary transformers
folders, which any server of this project loads by path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INITIAL_SCALE = 0.02
"""Standard deviation of fresh weights (Radford et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class ScratchModel:
    """Dimensions of a model to be made."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    context: int = 512
    """Longest sequence, in tokens."""

    def write(self, folder: Path, seed: int) -> str:
        """Write config, weights and tokenizer; returns the folder, which is the model's name for a server."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = byte_tokenizer()
        tokenizer.save(str(folder / "tokenizer.json"))
        vocabulary: int = tokenizer.get_vocab_size()
        _write_json(folder / "tokenizer_config.json", _tokenizer_settings(self.context))
        _write_json(folder / "config.json", self._config(vocabulary))
        save_file(self._weights(vocabulary, seed), folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    def _config(self, vocabulary: int) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "dtype": "float32",
        }

    def _weights(self, vocabulary: int, seed: int) -> dict[str, NDArray[np.float32]]:
        random = np.random.default_rng(seed)
        d, m = self.hidden, self.intermediate

        def matrix(rows: int, columns: int, scale: float = INITIAL_SCALE) -> NDArray[np.float32]:
            return (scale * random.standard_normal((rows, columns))).astype(np.float32)

        # What is added to the residual stream starts smaller, the more layers add to it.
        added = INITIAL_SCALE / (2 * self.layers) ** 0.5
        ones = np.ones(d, dtype=np.float32)
        weights = {"model.embed_tokens.weight": matrix(vocabulary, d), "model.norm.weight": ones}
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            for each in ("q_proj", "k_proj", "v_proj"):
                weights[f"{name}.self_attn.{each}.weight"] = matrix(d, d)
            weights[f"{name}.self_attn.o_proj.weight"] = matrix(d, d, added)
            weights[f"{name}.mlp.gate_proj.weight"] = matrix(m, d)
            weights[f"{name}.mlp.up_proj.weight"] = matrix(m, d)
            weights[f"{name}.mlp.down_proj.weight"] = matrix(d, m, added)
            weights[f"{name}.input_layernorm.weight"] = ones.copy()
            weights[f"{name}.post_attention_layernorm.weight"] = ones.copy()
        return weights


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, so any text round-trips, and every character of an answer is a decision."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))  # pyright: ignore[reportUnknownMemberType]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _tokenizer_settings(context: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
