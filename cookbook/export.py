"""Export: merge an adapter into its base model, as a folder that transformers and others load.

    python -m cookbook.export tinker://RUN/sampler_weights/NAME --base FOLDER --out merged

The adapter is a saved one on a server, or a folder that was downloaded. PEFT merges: the sum is made in
float32 and rounded once, to the dtype that the base has on disk, so the model has to fit into memory in
float32. An adapter of the unembedding is merged into a copy where the base shares its embedding with it.
Matrices without a place are an error: nothing is left out in silence.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinkerlite import ServiceClient, TinkerError


class CannotMerge(ValueError):
    """Adapter and base do not fit, or are not what can be merged."""


def merge(adapter: Path, base: str | None, out: Path) -> Path:
    """Write the merged model into a folder that does not exist yet or is empty, whole or not at all.

    Args:
        adapter: a folder in PEFT's layout.
        base: a model's folder, or its hub id; None for what the adapter names.
        out: the folder to make.

    Raises:
        CannotMerge: see the class.
    """
    transformers: Any = import_module("transformers")  # untyped, and as slow as what it is for
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CannotMerge(f"{out} is not an empty folder; name one that does not exist yet")
    base = base or base_of(adapter)
    try:
        if hasattr(transformers.AutoConfig.from_pretrained(base), "quantization_config"):
            raise CannotMerge(f"{base} is quantized; name the model that it was made from")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    except OSError as error:
        raise CannotMerge(f"the base model {base} cannot be loaded: {error}") from error
    dtype = model.dtype
    # In half precision the product of the matrices would be rounded before it is added.
    merged = _merged(model.float(), adapter).to(dtype)
    if not all(bool(weights.isfinite().all()) for weights in merged.parameters()):
        raise CannotMerge(f"a merged weight is not a finite number in {dtype}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        draft = Path(scratch) / "draft"
        merged.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.replace(out)
    return out


def base_of(adapter: Path) -> str:
    """The base model that an adapter names: its server's name for it.

    Raises:
        CannotMerge: it is no adapter.
    """
    config = adapter / "adapter_config.json"
    if not config.is_file():
        whole = (adapter / "config.json").is_file()
        reason = "it is a whole model already" if whole else "it is no adapter"
        raise CannotMerge(f"{adapter} has no {config.name}: {reason}")
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]


def _merged(model: Any, adapter: Path) -> Any:
    """The model with the adapter in its weights."""
    peft: Any = import_module("peft")
    layers: Any = import_module("peft.tuners.tuners_utils")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*tie_word_embeddings")  # they are untied below
            wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(adapter))
        loaded = wrapped.load_adapter(adapter, "default", torch_device="cpu")
    except (RuntimeError, ValueError) as error:  # sizes differ; no module has such a name
        first = " ".join(str(error).split()[:40])  # torch lists every matrix
        raise CannotMerge(f"{adapter} is an adapter of another model: {first}") from error
    homeless = [*loaded.unexpected_keys, *loaded.missing_keys]
    if homeless:
        raise CannotMerge(f"{adapter} is an adapter of another model: only one of the two has {homeless[0]}")
    head = model.get_output_embeddings()
    if isinstance(head, layers.BaseTunerLayer):
        _untie(model, head.get_base_layer())
    return wrapped.merge_and_unload()


def _untie(model: Any, head: Any) -> None:
    """Give the unembedding weights of its own, or the embedding would change with it."""
    if head.weight is model.get_input_embeddings().weight:
        head.weight = deepcopy(head.weight)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m cookbook.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", help="tinker://RUN/sampler_weights/NAME, or the folder of an adapter")
    parser.add_argument("--base", help="the base model: a folder, or a hub id [what the adapter names]")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--base-url", help="server that has the adapter [TINKERLITE_BASE_URL]")
    given = parser.parse_args(argv)
    if find_spec("peft") is None:
        raise SystemExit("cookbook.export needs the package peft: pip install --group export")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(given.adapter)
            if given.adapter.startswith("tinker://"):
                folder = Path(scratch) / "adapter"
                with ServiceClient(base_url=given.base_url) as service:
                    service.create_rest_client().download_checkpoint(given.adapter, folder).result()
            print(f"merged into {merge(folder, given.base, given.out)}")
    except (CannotMerge, TinkerError) as error:
        print(f"cannot merge: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
