"""Tokenizers: the server's own files, kept in a cache; else as transformers finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

import tinkerlite
from tests.client.scripted_server import Answer, ScriptedServer
from tests.tiny import TEXT, make_tokenizer
from tinkerlite import errors
from tinkerlite.tokenizers import store
from tinkerlite.types import TokenizerFiles


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINKERLITE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(made, vocab_size=300, max_context=512, text=TEXT)
    return made


def files_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_the_servers_files_make_the_tokenizer(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient, folder: Path
):
    body = {"model_name": "tiny", "files": files_of(folder), "tokenizer_hash": "h"}
    server.script("tokenizers/tiny", Answer(body=body))
    tokenizer = sampler.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("two and 3")) == "two and 3"


def test_a_server_that_offers_no_files_leaves_it_to_transformers(
    server: ScriptedServer, service: tinkerlite.ServiceClient, folder: Path
):
    info = {"model_id": "session:train:0", "model_data": {"model_name": "tiny", "tokenizer_id": str(folder)}}
    server.script("get_info", Answer(body=info))
    server.script("tokenizers/tiny", Answer(404, {"detail": "Not Found"}))
    tokenizer = service.create_lora_training_client("tiny").get_tokenizer()
    assert len(tokenizer) == 300


def test_where_there_is_none_at_all_the_error_says_so(
    server: ScriptedServer, service: tinkerlite.ServiceClient, tmp_path: Path
):
    nowhere = str(tmp_path / "nothing-here")
    sampler = service.create_sampling_client(base_model=nowhere)
    server.script(f"tokenizers/{nowhere}", Answer(404, {}))
    with pytest.raises(errors.CapabilityError, match="nothing-here"):
        sampler.get_tokenizer()


def test_without_transformers_the_error_says_what_to_install(
    sampler: tinkerlite.SamplingClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tinkerlite.tokenizers.find_spec", lambda name: None)
    with pytest.raises(errors.CapabilityError, match=r"tinkerlite\[tokenizers\]"):
        sampler.get_tokenizer()


def test_files_are_written_once_for_each_content(cache: Path):
    def files(text: str) -> TokenizerFiles:
        return TokenizerFiles(model_name="tiny", files={"tokenizer.json": text}, tokenizer_hash="h")

    one, again, other = store(files("{}")), store(files("{}")), store(files("[]"))
    assert one == again != other
    assert (one / "tokenizer.json").read_text() == "{}"
    assert sorted((cache / "tokenizers").iterdir()) == sorted([one, other])


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", ".hidden", ""])
def test_no_file_is_written_outside_the_cache(name: str):
    with pytest.raises(errors.APIResponseValidationError, match="no file name"):
        store(TokenizerFiles(model_name="tiny", files={name: ""}, tokenizer_hash="h"))
