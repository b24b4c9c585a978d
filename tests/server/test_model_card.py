from __future__ import annotations

import pytest

from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.model_card import model_card

PATH = "tinker://s:train:0/external_weights/final"


def card(base_model: str = "org/model", rank: int = 16, *, train_unembed: bool = False) -> str:
    adapter = AdapterConfig(rank=rank, alpha=32.0, seed=0, train_unembed=train_unembed)
    return model_card(PATH, base_model, adapter)


def test_it_begins_with_what_a_hub_files_it_by():
    assert card().startswith("---\nbase_model: org/model\nlibrary_name: peft\ntags:\n- lora\n---\n")


@pytest.mark.parametrize("folder", ["/models/tiny", "./tiny", "tiny", "~/tiny", "a/b/c"])
def test_a_folder_is_no_base_model_to_a_hub(folder: str):
    assert "base_model:" not in card(folder).partition("\n# ")[0]
    assert folder in card(folder)


@pytest.mark.parametrize(("rank", "size"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_vllm_is_told_the_next_rank_that_it_takes(rank: int, size: int):
    assert f"--max-lora-rank {size} " in card(rank=rank)


def test_what_vllm_cannot_load_is_said_with_a_way_out():
    assert "ranks up to 512" in card(rank=513)
    assert "merge_and_unload" in card(rank=513)
    assert "train_unembed=False" in card(train_unembed=True)


def test_it_names_what_was_trained():
    assert "rank 16, alpha 32, trained on attention, MLP." in card()
    assert "attention, MLP, unembedding." in card(train_unembed=True)
