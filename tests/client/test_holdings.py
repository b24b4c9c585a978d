"""What a server keeps, through our client: fetched, shared, copied, searched and expired.

Each on the real server, over real HTTP and in this process, by its owner and by someone else.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyrage
import pytest

import tinkerlite
from tests.client.command import command
from tests.client.test_download import files_in
from tests.client.test_end_to_end import PROMPT, STEP, TEXT, datum
from tests.parity.adapters_in_peft import IGNORED_WARNINGS, logprobs_in_peft
from tinkerlite import errors, types

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}


@dataclass(frozen=True)
class Home:
    """A server, and two who ask it: the owner of a trained run, and a stranger."""

    url: str
    service: tinkerlite.ServiceClient
    training: tinkerlite.TrainingClient
    stranger: tinkerlite.ServiceClient
    paths: dict[str, str]
    """The run's checkpoints, by kind."""

    @property
    def rest(self) -> tinkerlite.RestClient:
        return self.service.create_rest_client()

    def logprobs(self) -> np.ndarray:
        """Of the text under the run's weights, as the trainer says."""
        output = self.training.forward([datum()], "cross_entropy").result()
        return output.loss_fn_outputs[0]["logprobs"].to_numpy()

    def listed(self, path: str) -> types.Checkpoint:
        checkpoints = self.rest.list_checkpoints(self.training.model_id).result().checkpoints
        return next(each for each in checkpoints if each.tinker_path == path)


@pytest.fixture(scope="module")
def home(real_server: str, student_folder: Path) -> Iterator[Home]:
    with (
        tinkerlite.ServiceClient(base_url=real_server, api_key="tml-mine") as service,
        tinkerlite.ServiceClient(base_url=real_server, api_key="tml-theirs") as stranger,
    ):
        training = service.create_lora_training_client(str(student_folder), rank=4, seed=0)
        for _ in range(3):
            training.forward_backward([datum()], "cross_entropy")
            training.optim_step(STEP).result()
        paths = {
            "weights": training.save_state("end").result().path,
            "sampler_weights": training.save_weights_for_sampler("end").result().path or "",
            "external_weights": training.save_weights_external("end").result().path,
        }
        yield Home(real_server, service, training, stranger, paths)


# ---- fetched ----


@pytest.mark.parametrize("kind", ["weights", "sampler_weights", "external_weights"])
def test_a_downloaded_checkpoint_has_the_same_logprobs_in_peft(
    home: Home, student_folder: Path, tmp_path: Path, kind: str
):
    folder = home.rest.download_checkpoint(home.paths[kind], tmp_path / "adapter").result()
    assert set(files_in(folder)) >= ADAPTER_FILES
    here = home.logprobs()
    np.testing.assert_allclose(logprobs_in_peft(student_folder, folder, TEXT), here, atol=1e-5)
    assert np.abs(logprobs_in_peft(student_folder, None, TEXT) - here).max() > 0.1


def test_the_command_downloads_what_the_client_downloads(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKERLITE_API_KEY", "tml-mine")
    for kind, path in home.paths.items():
        out = tmp_path / kind
        told = command(capsys)(
            "checkpoint", "download", path, "--out", str(out), "--base-url", home.url, "--json"
        ).json
        by_client = home.rest.download_checkpoint(path, tmp_path / f"{kind}-again").result()
        assert files_in(out) == files_in(by_client)
        assert told == {"path": path, "folder": str(out), "files": sorted(files_in(out))}


def test_what_was_encrypted_is_downloaded_as_it_is_kept(home: Home, tmp_path: Path):
    age: Any = pyrage  # the extension module says nothing of its types
    identity = age.x25519.Identity.generate()
    recipients = [str(identity.to_public())]
    path = home.training.save_weights_external("sealed", age_encryption_recipients=recipients).result().path
    sealed = files_in(home.rest.download_checkpoint(path, tmp_path / "sealed").result())
    plain = files_in(
        home.rest.download_checkpoint(home.paths["external_weights"], tmp_path / "plain").result()
    )
    assert set(sealed) == {f"{name}.age" for name in plain}
    for name in ADAPTER_FILES:
        assert age.decrypt(sealed[f"{name}.age"], [identity]) == plain[name]
    with pytest.raises(errors.BadRequestError, match=r"age_encryption_recipients\[0\] is 'age1nobody'"):
        home.training.save_weights_external("bad", age_encryption_recipients=["age1nobody"]).result()
    assert home.logprobs().size, "the run goes on"


def test_urls_are_for_an_hour_and_name_each_file(home: Home):
    signed = home.rest.get_external_weights_urls(home.paths["external_weights"]).result()
    assert set(signed.urls) >= {"README.md", *ADAPTER_FILES}
    archive = home.rest.get_checkpoint_archive_url_from_tinker_path(home.paths["weights"]).result()
    by_id = home.rest.get_checkpoint_archive_url(home.training.model_id, "weights/end").result()
    assert archive.url.partition("?")[0] == by_id.url.partition("?")[0]
    for expires in (signed.expires, archive.expires):
        assert expires is not None
        assert timedelta(minutes=50) < expires - datetime.now(UTC) <= timedelta(hours=1)
    with pytest.raises(errors.BadRequestError, match="save_weights_external"):
        home.rest.get_external_weights_urls(home.paths["weights"]).result()


def test_urls_of_a_server_with_a_port_are_anyones_to_open(home: Home, tmp_path: Path):
    if home.url.startswith("local://"):
        pytest.skip("a server without a port answers its clients alone")
    path = home.paths["external_weights"]
    fetched = {}
    for name, url in home.rest.get_external_weights_urls(path).result().urls.items():
        with urllib.request.urlopen(url, timeout=60) as response:
            fetched[name] = response.read()
    assert fetched == files_in(home.rest.download_checkpoint(path, tmp_path / "adapter").result())


def test_a_checkpoint_that_is_not_there_leaves_nothing_behind(home: Home, tmp_path: Path):
    for path in (home.paths["weights"] + "x", home.paths["external_weights"] + "x"):
        with pytest.raises(errors.NotFoundError, match="endx"):
            home.rest.download_checkpoint(path, tmp_path / "new").result()
    assert list(tmp_path.iterdir()) == []


# ---- shared ----


def test_a_published_checkpoint_is_everyones_until_it_is_not(home: Home, tmp_path: Path):
    path, theirs = home.paths["sampler_weights"], home.stranger.create_rest_client()
    own = home.service.create_sampling_client(path).compute_logprobs(PROMPT).result()
    with pytest.raises(errors.NotFoundError):
        home.stranger.create_sampling_client(path)
    with pytest.raises(errors.NotFoundError):
        theirs.download_checkpoint(path, tmp_path / "new").result()
    with pytest.raises(errors.NotFoundError):
        theirs.publish_checkpoint_from_tinker_path(path).result()
    for _ in range(2):  # the second time changes nothing
        home.rest.publish_checkpoint_from_tinker_path(path).result()
    assert home.listed(path).public
    assert home.stranger.create_sampling_client(path).compute_logprobs(PROMPT).result() == own
    fetched = files_in(theirs.download_checkpoint(path, tmp_path / "theirs").result())
    assert fetched == files_in(home.rest.download_checkpoint(path, tmp_path / "mine").result())
    with pytest.raises((errors.NotFoundError, errors.PermissionDeniedError)):
        theirs.delete_checkpoint_from_tinker_path(path).result()
    for _ in range(2):
        home.rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not home.listed(path).public
    with pytest.raises(errors.NotFoundError):
        theirs.download_checkpoint(path, tmp_path / "again").result()


# ---- copied ----


def test_a_copy_is_ones_own_and_outlives_the_original(home: Home):
    path = home.training.save_state("original", ttl_seconds=3600).result().path
    with tinkerlite.ServiceClient(base_url=home.url, api_key="tml-theirs", project_id="archive") as archive:
        with pytest.raises(errors.NotFoundError):
            archive.copy_weights(path).result()
        copy = archive.copy_weights(path, weights_access_token="tml-mine").result()
        rest = archive.create_rest_client()
        assert rest.copy_weights(path, "archive", weights_access_token="tml-mine").result() != copy
        home.rest.delete_checkpoint_from_tinker_path(path).result()
        filed = rest.list_training_runs(project_id="archive").result().training_runs
        assert copy in {run.last_checkpoint.tinker_path for run in filed if run.last_checkpoint}
        resumed = archive.create_training_client_from_state_with_optimizer(copy)
        output = resumed.forward([datum()], "cross_entropy").result()
        np.testing.assert_allclose(
            output.loss_fn_outputs[0]["logprobs"].to_numpy(), home.logprobs(), atol=1e-5
        )
        metrics = resumed.optim_step(STEP).result().metrics
        assert metrics is not None
        assert metrics["step"] == 4
        [listed] = rest.list_checkpoints(copy.split("/")[2]).result().checkpoints
        assert listed.expires_at is None, "the copy is kept, whatever holds for the original"


def test_a_copy_may_expire(home: Home):
    copy = home.rest.copy_weights(home.paths["weights"], "archive", ttl_seconds=7200).result()
    [listed] = home.rest.list_checkpoints(copy.split("/")[2]).result().checkpoints
    assert listed.expires_at is not None
    assert timedelta(minutes=110) < listed.expires_at - datetime.now(UTC) <= timedelta(hours=2)


# ---- expired ----


def test_a_checkpoint_expires_when_it_is_told_to_and_not_otherwise(home: Home):
    path = home.paths["sampler_weights"]
    assert home.listed(path).expires_at is None
    home.rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    expires_at = home.listed(path).expires_at
    assert expires_at is not None
    assert timedelta(minutes=50) < expires_at - datetime.now(UTC) <= timedelta(hours=1)
    home.rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert home.listed(path).expires_at is None
    with pytest.raises(errors.BadRequestError, match="60"):
        home.rest.set_checkpoint_ttl_from_tinker_path(path, 60).result()


# ---- searched ----


def test_sessions_are_found_by_name_metadata_project_and_status(home: Home):
    def found(**conditions: object) -> list[types.SessionSummary]:
        return home.rest.search_sessions(types.SessionSearchRequest(**conditions)).result().sessions

    named: dict[str, Any] = {"display_name": "Needle in a stack", "user_metadata": {"k": "v"}}
    client = tinkerlite.ServiceClient(base_url=home.url, api_key="tml-mine", **named)
    [session] = found(display_name="NEEDLE stack", user_metadata={"k": "v"})
    assert session.session_id == client.session_id
    assert session.status.type == "active"
    home.rest.assign_session_project(client.session_id, "sewing").result()
    assert [each.session_id for each in found(project_ids=["sewing"])] == [client.session_id]
    client.close("errored", "the thread broke")
    broken = types.ClientFinishedSessionStatusQuery(reasons=["errored"])
    [ended] = found(display_name="needle", statuses=[broken])
    assert isinstance(ended.status, types.ClientSessionFinished)
    assert (ended.status.reason.type, ended.status.detail) == ("errored", "the thread broke")
    assert found(display_name="needle", statuses=[types.ActiveSessionStatusQuery()]) == []
    theirs = home.stranger.create_rest_client()
    request = types.SessionSearchRequest(display_name="needle")
    assert theirs.search_sessions(request).result().sessions == []


def test_a_search_goes_on_page_by_page(home: Home):
    made = set()
    for _ in range(5):
        with tinkerlite.ServiceClient(
            base_url=home.url, api_key="tml-mine", display_name="one of five"
        ) as client:
            made.add(client.session_id)
    request = types.SessionSearchRequest(display_name="five", limit=2)
    pages: list[list[str]] = []
    while True:
        page = home.rest.search_sessions(request).result()
        pages.append([each.session_id for each in page.sessions])
        if page.next_cursor is None:
            break
        request = request.model_copy(update={"cursor": page.next_cursor})
    seen = [each for page in pages for each in page]
    assert max(map(len, pages)) == 2
    assert (len(seen), set(seen)) == (5, made)
