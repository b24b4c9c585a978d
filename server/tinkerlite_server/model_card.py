"""The README of weights that leave the server: what they are, and what loads them.

Text alone; knows neither files nor HTTP.
"""

from __future__ import annotations

from tinkerlite_server.engine.protocols import AdapterConfig

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be."""


def model_card(path: str, base_model: str, adapter: AdapterConfig | None) -> str:
    """A README.md in Markdown, with the front matter by which a model hub files it.

    Args:
        path: the tinker:// path of the checkpoint.
        adapter: None for a whole model.
    """
    if adapter is None:
        return _whole_model_card(path, base_model)
    families = {
        "attention": adapter.train_attn,
        "MLP": adapter.train_mlp,
        "unembedding": adapter.train_unembed,
    }
    trained = ", ".join(name for name, trains in families.items() if trains)
    what = (
        f"A LoRA adapter of `{base_model}` in PEFT's layout: rank {adapter.rank}, alpha {adapter.alpha:g}, "
        f"trained on {trained}. It adds alpha / rank times B A to each weight."
    )
    return "\n".join(
        [
            "---",
            *_filed(base_model),
            "library_name: peft",
            "tags:",
            "- lora",
            "---",
            "",
            f"# {path}",
            "",
            what,
            "",
            f'    model = AutoModelForCausalLM.from_pretrained("{base_model}")',
            '    model = PeftModel.from_pretrained(model, "<this folder>")',
            "",
            _for_vllm(base_model, adapter),
            "",
        ]
    )


def _whole_model_card(path: str, base_model: str) -> str:
    return "\n".join(
        [
            "---",
            *_filed(base_model),
            "library_name: transformers",
            "---",
            "",
            f"# {path}",
            "",
            f"All weights of `{base_model}`, fine-tuned. transformers and vLLM load this folder as it is:",
            "",
            '    model = AutoModelForCausalLM.from_pretrained("<this folder>")',
            "    vllm serve <this folder>",
            "",
        ]
    )


def _filed(base_model: str) -> list[str]:
    # A hub takes ids of the form owner/name alone as a base model; a folder's name would be refused.
    is_hub_id = base_model.count("/") == 1 and not base_model.startswith((".", "/", "~"))
    return [f"base_model: {base_model}"] if is_hub_id else []


def _for_vllm(base_model: str, adapter: AdapterConfig) -> str:
    merge = (
        "can be merged into the base model with PEFT's `merge_and_unload` (untie its embeddings first, if it "
        "ties them and the unembedding is adapted)"
    )
    if adapter.train_unembed:
        return (
            "vLLM loads adapters of the unembedding (`lm_head`) for some architectures, and refuses them "
            'for the rest ("expected target modules ..."). This one has it. Train weights for vLLM with '
            f"`train_unembed=False`; these {merge}."
        )
    size = next((each for each in _VLLM_RANKS if each >= adapter.rank), None)
    if size is None:
        return f"vLLM takes ranks up to {_VLLM_RANKS[-1]}; these weights {merge}."
    return (
        "vLLM loads this folder as it is:\n\n"
        f"    vllm serve {base_model} --enable-lora --max-lora-rank {size} "
        "--lora-modules adapter=<this folder>"
    )
