"""Models with random weights: what is written loads as any model, and knows nothing yet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cookbook.renderers import Message, chat_template, chatml, token_map_hash
from cookbook.scratch_model import ScratchConfig, ScratchModelError, main, write_scratch_model
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.tasks import TASKS
from tests.tiny import make_tiny_model
from tinkerlite import ServiceClient

SMALL = {"layers": 2, "hidden": 64, "heads": 4, "context": 128}


def write(folder: Path, **sizes: Any) -> Path:
    write_scratch_model(ScratchConfig(out=str(folder), **(SMALL | sizes)))
    return folder


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_loads_it_with_all_of_its_weights_and_none_made_up(tmp_path: Path, tie: bool):
    said = write_scratch_model(ScratchConfig(out=str(tmp_path), tie=tie, **SMALL))
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f": {total:,} parameters" in said
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    assert model.dtype == torch.float32


@pytest.mark.parametrize(("layers", "hidden", "heads"), [(1, 32, 2), (6, 128, 4)])
def test_untrained_it_finds_all_tokens_about_equally_likely(
    tmp_path: Path, layers: int, hidden: int, heads: int
):
    model = AutoModelForCausalLM.from_pretrained(write(tmp_path, layers=layers, hidden=hidden, heads=heads))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, 259, (4, 64)))
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss.item()
    assert loss == pytest.approx(math.log(259), abs=0.15)


def test_a_seed_makes_the_same_weights_again_and_another_seed_others(tmp_path: Path):
    names = {"a": 0, "again": 0, "other": 1}
    files = {
        name: (write(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in names.items()
    }
    assert files["a"] == files["again"] != files["other"]


def test_models_of_different_sizes_share_one_vocabulary(tmp_path: Path):
    folders = [write(tmp_path / "small"), write(tmp_path / "large", hidden=128, layers=3)]
    assert len({token_map_hash(AutoTokenizer.from_pretrained(folder)) for folder in folders}) == 1


@pytest.mark.parametrize(
    "text", ["2 + 2 = 4\n", "naïve café", "日本語 🙂", "  two  blanks ", "<|im_start|>user"]
)
def test_any_text_is_its_bytes_and_comes_back(tmp_path: Path, text: str):
    tokenizer = AutoTokenizer.from_pretrained(write(tmp_path))
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    special = "<|im_start|>"
    assert len(tokens) == len(text.replace(special, "").encode()) + text.count(special)


def test_its_chat_template_is_what_the_chatml_renderer_writes(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(write(tmp_path))
    messages = [
        Message(role="user", content="2 + 2"),
        Message(role="assistant", content="4"),
        Message(role="user", content="and 1?"),
    ]
    assert chatml(tokenizer).generation_prompt(messages) == chat_template(tokenizer).generation_prompt(
        messages
    )
    assert chatml(tokenizer).stop_tokens == [tokenizer.eos_token_id]


@pytest.mark.parametrize("served", [False, True])
def test_a_tokenizer_is_copied_from_a_folder_or_a_server(tmp_path: Path, served: bool):
    other = make_tiny_model(tmp_path / "other")
    base_url = f"local://{other}" if served else ""
    folder = write(tmp_path / "new", tokenizer=str(other), base_url=base_url)
    one, two = (AutoTokenizer.from_pretrained(each) for each in (folder, other))
    assert token_map_hash(one) == token_map_hash(two)
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (512, two.eos_token_id)
    chat = [{"role": "user", "content": "hi"}]
    assert one.apply_chat_template(chat, tokenize=False) == two.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"out": ""}, "name a folder to write to: --out FOLDER"),
        ({"layers": 0}, "--layers is 0; it must be at least 1"),
        ({"hidden": 60, "heads": 8}, "--hidden is 60 and --heads 8; the width of a head"),
        ({"hidden": 12, "heads": 4}, "must be a whole even number"),
        ({"mlp": -1}, "--mlp is -1"),
        ({"tokenizer": "./nothing"}, "the tokenizer of './nothing' cannot be had"),
    ],
)
def test_what_makes_no_model_is_refused_with_the_flag_that_is_wrong(
    tmp_path: Path, wrong: dict[str, Any], message: str
):
    with pytest.raises(ScratchModelError, match=message):
        write_scratch_model(ScratchConfig(**({"out": str(tmp_path / "new")} | SMALL | wrong)))


def test_a_model_that_is_there_stays(tmp_path: Path):
    write(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ScratchModelError, match="holds a model already"):
        write(tmp_path, seed=1)
    with pytest.raises(SystemExit, match=r"scratch_model: .* holds a model already"):
        main(["--out", str(tmp_path)])
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_trained_from_scratch_it_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    main(["--out", str(tmp_path), *flags])
    assert f"tinkerlite serve --model {tmp_path}" in capsys.readouterr().out
    config = SupervisedConfig(
        steps=30, batch_size=16, learning_rate=3e-3, held_out=4, evaluate_every=30, max_tokens=4
    )
    with ServiceClient(base_url=f"local://{tmp_path}") as service:
        training = service.create_training_client(str(tmp_path))
        rows = train_supervised(
            config,
            training,
            TASKS["larger"],
            renderer=chatml(training.get_tokenizer()),
            record=lambda row: None,
        )
    losses = [float(row["loss_per_token"]) for row in rows if "loss_per_token" in row]
    assert losses[0] == pytest.approx(math.log(259), abs=0.3)
    assert losses[-1] < losses[0] / 2
