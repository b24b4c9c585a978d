"""Tokenizers, from the server if it offers its models' files, else as transformers finds them.

Needs transformers (the extra `tokenizers`). Knows no text and no template.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tinkerlite.connection import Connection
from tinkerlite.errors import APIResponseValidationError, CapabilityError, NotFoundError
from tinkerlite.types import TokenizerFiles

Tokenizer = Any
"""A transformers tokenizer (`PreTrainedTokenizerBase`)."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def load_tokenizer(connection: Connection, model_name: str, tokenizer_id: str | None = None) -> Tokenizer:
    """The tokenizer of a base model.

    Raises:
        CapabilityError: transformers is not installed, or finds no such tokenizer.
    """
    _require_transformers()
    try:
        path = f"tokenizers/{quote(model_name, safe='/:')}"  # a folder may be called anything
        files = connection.wait(connection.ask(TokenizerFiles, "GET", path))
    except NotFoundError:
        # Not one of our servers: what a colon adds to a hub id (a revision) is not for the hub.
        return _load((tokenizer_id or model_name).partition(":")[0])
    return _load(str(store(files)))


def store(files: TokenizerFiles) -> Path:
    """Write the files into the cache, once for each content, and return their folder.

    Raises:
        APIResponseValidationError: one of the names would lead out of the folder.
    """
    for name in files.files:
        if not _PLAIN_NAME.fullmatch(name):
            raise APIResponseValidationError(
                message=f"tokenizer of {files.model_name}: {name!r} is no file name"
            )
    digest = hashlib.sha256(json.dumps(files.files, sort_keys=True).encode()).hexdigest()
    cache = cache_folder() / "tokenizers"
    folder = cache / digest
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            draft = Path(scratch) / "draft"
            draft.mkdir()
            for name, text in files.files.items():
                (draft / name).write_text(text, encoding="utf-8")
            # Fails only where another process was faster, with the same files.
            with contextlib.suppress(OSError):
                draft.rename(folder)
    return folder


def cache_folder() -> Path:
    """TINKERLITE_CACHE_DIR, else ~/.cache/tinkerlite."""
    return Path(os.environ.get("TINKERLITE_CACHE_DIR") or "~/.cache/tinkerlite").expanduser()


def _require_transformers() -> None:
    # Asked before the server is, as the answer would be of no use.
    if find_spec("transformers") is None:
        raise CapabilityError(
            "get_tokenizer needs transformers, which is not installed: pip install 'tinkerlite[tokenizers]'"
        )


def _load(name: str) -> Tokenizer:
    transformers: Any = import_module("transformers")  # untyped, as it need not be installed
    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CapabilityError(
            f"transformers finds no tokenizer for {name!r}, and the server offers none: {error}"
        ) from error
