"""A model's tokenizer from the server that serves the model, for the cookbook to use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

from tinker_cookbook.tokenizer_utils import register_tokenizer
from transformers import AutoTokenizer


def register_served_tokenizer(url: str, model: str, folder: Path) -> None:
    """Fetch the files of `model`'s tokenizer into `folder`, and have the cookbook use them."""
    request = Request(f"{url}/api/v1/tokenizers/{model}", headers={"X-API-Key": os.environ["TINKER_API_KEY"]})
    with urlopen(request) as response:
        files = json.load(response)["files"]
    for name, text in files.items():
        (folder / name).write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    register_tokenizer(model, lambda: tokenizer)
