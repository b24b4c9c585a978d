"""The cookbook's own `weights.download()`: what comes down is the adapter that was trained, in PEFT too."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest
import torch
from lessons import PROMPT, SEQUENCE, STEP, lesson
from peft import PeftModel
from tinker import RestClient, TrainingClient
from tinker_cookbook import weights
from tinker_cookbook.exceptions import WeightsDownloadError
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings(
    # PEFT asks transformers by a name that transformers is about to drop.
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
)

TENSORS = "adapter_model.safetensors"


@pytest.fixture
def trained(trainer: TrainingClient) -> TrainingClient:
    for _ in range(3):
        trainer.forward_backward([lesson()], "cross_entropy")
        trainer.optim_step(STEP).result()
    return trainer


def logprobs_in_peft(base_model: str, adapter: str | None) -> list[float]:
    """Of each token but the first."""
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model(torch.tensor([SEQUENCE[:-1]])).logits[0].float()
    return torch.log_softmax(logits, -1)[range(len(SEQUENCE) - 1), SEQUENCE[1:]].tolist()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_training_checkpoint_comes_encrypted_and_is_the_adapter(
    url: str, rest: RestClient, trained: TrainingClient, base_model: str, tmp_path: Path
):
    path = trained.save_state("final").result().path
    here = trained.save_weights_and_get_sampling_client().result().compute_logprobs(PROMPT).result()[1:]
    before = {each.tinker_path for each in rest.list_user_checkpoints(limit=1000).result().checkpoints}
    folder = weights.download(tinker_path=path, output_dir=str(tmp_path / "adapter"), base_url=url)
    fetched = files(Path(folder))
    assert fetched >= {"README.md", "adapter_config.json", TENSORS}
    assert not [name for name in fetched if name.endswith(".age")], "all are decrypted"
    assert logprobs_in_peft(base_model, folder) == pytest.approx(here, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(logprobs_in_peft(base_model, None), here, strict=True)) > 0.1
    after = {each.tinker_path for each in rest.list_user_checkpoints(limit=1000).result().checkpoints}
    assert after == before, "what was made for the download is gone"
    plain = trained.save_weights_external("plain").result().path
    other = weights.download(tinker_path=plain, output_dir=str(tmp_path / "plain"), base_url=url)
    assert (Path(other) / TENSORS).read_bytes() == (Path(folder) / TENSORS).read_bytes()


def test_an_encrypted_export_comes_as_it_is_kept(url: str, trained: TrainingClient, tmp_path: Path):
    identity = pyrage.x25519.Identity.generate()
    recipients = [str(identity.to_public())]
    sealed = trained.save_weights_external("sealed", age_encryption_recipients=recipients).result().path
    plain = trained.save_weights_external("plain").result().path
    for path in (sealed, plain):
        weights.download(tinker_path=path, output_dir=str(tmp_path / path.rpartition("/")[2]), base_url=url)
    kept = (tmp_path / "sealed" / f"{TENSORS}.age").read_bytes()
    assert pyrage.decrypt(kept, [identity]) == (tmp_path / "plain" / TENSORS).read_bytes()


def test_what_is_not_there_is_said_to_be_not_there(url: str, tmp_path: Path):
    with pytest.raises(WeightsDownloadError, match="nobody"):
        weights.download(
            tinker_path="tinker://nobody:train:0/weights/x", output_dir=str(tmp_path), base_url=url
        )
