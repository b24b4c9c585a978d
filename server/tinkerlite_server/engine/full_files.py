"""Full runs on disk: a folder that transformers, vLLM and others load as any model.

    config.json, generation_config.json, model*.safetensors    as transformers writes them
    tokenizer files                                            the base model's, copied
    optimizer.safetensors                                      Adam's moments and step count, if asked for

A folder without `adapter_config.json` but with `config.json` is such a one; that is how readers tell
them from adapters (adapter_files.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from tinkerlite_server.engine.adapter_files import CONFIG_FILE as ADAPTER_CONFIG_FILE

MODEL_CONFIG_FILE = "config.json"
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.model",
)


def holds_whole_model(folder: Path) -> bool:
    """Whether a checkpoint's folder has all weights of a model, not an adapter."""
    return (folder / MODEL_CONFIG_FILE).is_file() and not (folder / ADAPTER_CONFIG_FILE).exists()


def write_model(folder: Path, model: Any, base_folder: Path) -> None:
    """Write transformers' model, and the tokenizer of its base model, into an existing folder."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    for pattern in TOKENIZER_PATTERNS:
        for file in base_folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
