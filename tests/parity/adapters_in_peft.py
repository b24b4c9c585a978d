"""What a downloaded adapter says in PEFT, for tests that compare it with what it said here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

IGNORED_WARNINGS = (
    # PEFT asks transformers by a name that transformers is about to drop, and warns of merging tied heads.
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:.*tie_word_embeddings:UserWarning",
)


def logprobs_in_peft(base_model: Path, adapter: Path | None, tokens: Sequence[int]) -> np.ndarray:
    """(T - 1,): of each token but the first; under the base model alone if there is no adapter."""
    model = AutoModelForCausalLM.from_pretrained(base_model)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0].float()
    return torch.log_softmax(logits, -1)[range(len(tokens) - 1), list(tokens[1:])].numpy()
