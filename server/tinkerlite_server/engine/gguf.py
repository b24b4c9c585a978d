"""GGUF: turn a weights file of llama.cpp into a folder that transformers loads as any other.

Weights and configuration come through transformers, de-quantised to float32: a 4-bit weight
d * q + m, with half-precision d and m, is a float32 number but seldom a bfloat16 one, so
float32 keeps what the file says. The tokenizer is built here, from the file's own vocabulary,
merges and pre-tokenizer name, because transformers gives several kinds of file another
model's tokenizer. Byte-level BPE only.

Converting takes half a minute and a few bytes per parameter, once: folders are cached by content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel

from tinkerlite_server.durable import sync_folder
from tinkerlite_server.errors import BadRequest

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of the cache key: raise it when a conversion would come out differently."""

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Token types of GGUF. Unused ones pad the embedding and are no tokens."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For files without a chat template whose vocabulary has ChatML's tokens."""


def converted(file: Path, cache: Path) -> Path:
    """The folder made from a GGUF file, converted unless `cache` has it from an earlier time.

    Safe to call from several processes: each works in a folder of its own, the first to finish
    renames it into place, the others' work is dropped.

    Raises:
        BadRequest: not a GGUF file, or one whose tokenizer or architecture is not supported.
    """
    folder = cache / f"{file.stem}-{_content_key(file)}"
    if folder.is_dir():
        return folder
    started = time.monotonic()
    logger.info("converting %s (once)", file.name)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        write_tokenizer(file, made)
        write_model(file, made)
        sync_folder(made)
        move_into_place(made, folder)
    logger.info("converted %s to %s in %.1f s", file.name, folder, time.monotonic() - started)
    return folder


def move_into_place(made: Path, folder: Path) -> None:
    """Rename; where another process was first, its folder stays, and `made` where it was."""
    try:
        made.rename(folder)
    except OSError:
        # Renaming onto a folder with files in it fails.
        if not folder.is_dir():
            raise


def _content_key(file: Path) -> str:
    """Content and format version: the same file in another environment is not converted again."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"v{FORMAT_VERSION}-{digest[:16]}"


# ---- weights ----


def write_model(file: Path, folder: Path) -> None:
    """config.json, generation_config.json and float32 safetensors.

    Raises:
        BadRequest: transformers cannot read it.
    """
    try:
        quantized: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise BadRequest(f"{file.name} cannot be read as a causal language model: {error}") from error
    # transformers does not save a model that came out of a GGUF file; one made from its
    # configuration, on the same tensors, is an ordinary model.
    stated = quantized.config.to_dict()
    stated.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(quantized)(type(quantized.config).from_dict(stated))
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)


# ---- tokenizer ----


def write_tokenizer(file: Path, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as AutoTokenizer reads them.

    Raises:
        BadRequest: the file has no byte-level BPE vocabulary, or splits text in a way not known here.
    """
    stated = _metadata(file)
    kind = stated.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise BadRequest(f"{file.name} has a {kind!r} tokenizer; only byte-level BPE ('gpt2') is supported")
    for key in ("tokens", "token_type", "merges"):
        if f"tokenizer.ggml.{key}" not in stated:
            raise BadRequest(f"{file.name} has no tokenizer.ggml.{key}, so no tokenizer can be built from it")
    tokens: list[str] = stated["tokenizer.ggml.tokens"]
    types: list[int] = stated["tokenizer.ggml.token_type"]
    named = {
        name: tokens[stated[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if f"tokenizer.ggml.{key}_token_id" in stated
    }
    tokenizer = _byte_level_bpe(stated, file.name)
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == USER_DEFINED]
    )
    if stated.get("tokenizer.ggml.add_bos_token", False):
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, tokens.index(bos))]
        )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **named,
    }
    architecture = stated["general.architecture"]
    if context := stated.get(f"{architecture}.context_length"):
        settings["model_max_length"] = context
    template = stated.get("tokenizer.chat_template")
    if template is None and {"<|im_start|>", "<|im_end|>"} <= set(tokens):
        template = CHATML
    if template is not None:
        settings["chat_template"] = template
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _byte_level_bpe(stated: dict[str, Any], file_name: str) -> Tokenizer:
    splitter = stated.get("tokenizer.ggml.pre", "gpt-2")
    if splitter not in SPLITTERS:
        raise BadRequest(
            f"{file_name} splits text as {splitter!r}, which is not known here; known are {sorted(SPLITTERS)}"
        )
    types = stated["tokenizer.ggml.token_type"]
    vocab = {t: i for i, t in enumerate(stated["tokenizer.ggml.tokens"]) if types[i] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in stated["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    SPLITTERS[splitter](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _split_as_gpt2(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split_as_smollm(tokenizer: Tokenizer) -> None:
    """GPT-2's, after cutting numbers into digits."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _split_as_qwen2(tokenizer: Tokenizer) -> None:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTERS: dict[str, Callable[[Tokenizer], None]] = {
    "gpt-2": _split_as_gpt2,
    "smollm": _split_as_smollm,
    "qwen2": _split_as_qwen2,
}
"""How text is cut before merging, by llama.cpp's name for it (`tokenizer.ggml.pre`)."""


def _metadata(file: Path) -> dict[str, Any]:
    try:
        reader = GGUFReader(os.fspath(file))
    except (ValueError, OSError) as error:
        raise BadRequest(f"{file} cannot be read as GGUF: {error}") from error
    return {name: entry.contents() for name, entry in reader.fields.items()}
