from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest, Gone, UnknownName
from tinkerlite_server.records.checkpoints import split_path
from tinkerlite_server.schema import FolderInUse
from tinkerlite_server.store import Store
from tinkerlite_server.tables import CheckpointRow, SamplerRow

ADAPTER = AdapterConfig(rank=4, alpha=32.0, seed=1, train_unembed=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path, clock=clock)
    opened.add_session("s", "me", tags=[], user_metadata={})
    add_run(opened, "s:train:0")
    yield opened
    opened.close()


def add_run(store: Store, model_id: str) -> None:
    store.add_run(
        model_id, session_id="s", owner="me", base_model="toy", adapter=ADAPTER, user_metadata={"k": 1}
    )


def save(
    store: Store, name: str = "a", *, folder: str = "folder", ttl_seconds: int | None = None
) -> CheckpointRow:
    return store.put_checkpoint(
        store.run("s:train:0", "me"),
        kind="weights",
        name=name,
        folder=folder,
        size_bytes=10,
        ttl_seconds=ttl_seconds,
        user_metadata={},
    )


def sampler(sampler_id: str, *, folder: str | None = None, adapter_id: str | None = None) -> SamplerRow:
    return SamplerRow(
        id=sampler_id,
        session_id="s",
        owner="me",
        base_model="toy",
        model_path=None,
        adapter_id=adapter_id,
        folder=folder,
        ended=None,
    )


def test_a_run_remembers_its_adapter(store: Store):
    assert store.run("s:train:0", "me").adapter_config == ADAPTER


def test_what_belongs_to_someone_else_is_not_there(store: Store):
    path = save(store).path
    store.add_sampler(sampler("s:sample:0"))
    for look in (
        lambda: store.session("s", "you"),
        lambda: store.run("s:train:0", "you"),
        lambda: store.sampler("s:sample:0", "you"),
        lambda: store.checkpoint(path, "you"),
    ):
        with pytest.raises(UnknownName, match="for this API key"):
            look()
    assert store.list_sessions("you", limit=10, offset=0) == []
    assert store.list_runs("you", limit=10, offset=0) == ([], 0)
    assert store.list_checkpoints("you", limit=10, offset=0) == ([], 0)


def test_ending_a_session_ends_what_is_in_memory_and_keeps_what_was_saved(store: Store):
    path = save(store).path
    store.add_sampler(sampler("s:sample:0"))
    runs, samplers = store.end_session("s", "it was closed")
    assert runs == ["s:train:0"]
    assert [each.id for each in samplers] == ["s:sample:0"]
    with pytest.raises(Gone, match="it was closed"):
        store.live_session("s", "me")
    with pytest.raises(UnknownName, match=f"it was closed; its last checkpoint is {path}"):
        store.live_run("s:train:0", "me")
    assert store.checkpoint(path, "me").path == path


def test_nothing_begins_to_sample_in_a_session_that_has_ended(store: Store):
    """It would hold its checkpoint's folder for ever."""
    store.end_session("s", "it was closed")
    with pytest.raises(Gone, match="it was closed"):
        store.add_sampler(sampler("late", folder="saved", adapter_id="ckpt"))
    assert store.find_sampler("late") is None
    assert store.folders_in_use() == set()


def test_the_first_reason_for_ending_a_session_stands(store: Store):
    store.end_session("s", "it was closed")
    assert store.end_session("s", "something else") == ([], [])
    assert store.session("s", "me").ended == "it was closed"


def test_a_checkpoint_takes_the_place_of_one_with_its_name(store: Store):
    first = save(store, folder="first")
    second = save(store, folder="second")
    assert store.checkpoint(first.path, "me").folder == "second"
    assert store.checkpoint_by_id(first.id) is None
    assert store.list_checkpoints("me", limit=10, offset=0)[1] == 1
    assert second.adapter_config == ADAPTER


def test_an_expired_checkpoint_is_not_there_even_before_it_is_swept(store: Store, clock: Clock):
    path = save(store, ttl_seconds=60).path
    clock.now += 59
    assert store.checkpoint(path, "me").expires == 1060.0
    clock.now += 1
    with pytest.raises(UnknownName, match="may have expired"):
        store.checkpoint(path, "me")
    store.drop_expired_checkpoints()
    assert store.list_checkpoints("me", limit=10, offset=0) == ([], 0)


def test_an_expiry_can_be_set_and_removed(store: Store, clock: Clock):
    checkpoint = save(store, ttl_seconds=60)
    store.set_checkpoint_ttl(checkpoint.id, 3600)
    assert store.checkpoint(checkpoint.path, "me").expires == 4600.0
    store.set_checkpoint_ttl(checkpoint.id, None)
    clock.now += 1e9
    assert store.checkpoint(checkpoint.path, "me").expires is None


def test_listings_come_in_pages_newest_first(store: Store, clock: Clock):
    for name in ("a", "b", "c"):
        clock.now += 1
        save(store, name)
    rows, total = store.list_checkpoints("me", run_id="s:train:0", limit=2, offset=1)
    assert ([row.name for row in rows], total) == (["b", "a"], 3)


def test_a_folder_is_in_use_while_a_checkpoint_or_a_live_sampling_session_names_it(store: Store):
    checkpoint = save(store, folder="saved")
    store.add_sampler(sampler("s:sample:0", folder="saved", adapter_id=checkpoint.id))
    store.delete_checkpoint(checkpoint.id)
    assert store.folders_in_use() == {"saved"}
    store.end_session("s", "it was closed")
    assert store.folders_in_use() == set()


def test_a_sampling_session_in_use_is_not_taken_for_live_beyond_its_end(store: Store):
    store.add_sampler(sampler("one", adapter_id="a"))
    store.add_sampler(sampler("two", adapter_id="b"))
    for _ in range(2):
        assert store.live_sampler("one", "me").adapter_id == "a"
        with pytest.raises(UnknownName):
            store.live_sampler("one", "you")
    store.end_samplers_of_snapshot("a")
    with pytest.raises(UnknownName, match="newer weights"):
        store.live_sampler("one", "me")
    store.live_sampler("two", "me")
    store.end_session("s", "it was closed")
    with pytest.raises(UnknownName, match="it was closed"):
        store.live_sampler("two", "me")


def test_after_a_restart_only_what_was_on_disk_is_alive(store: Store):
    store.add_sampler(sampler("base"))
    store.add_sampler(sampler("saved", folder="folder", adapter_id="ckpt"))
    store.add_sampler(sampler("snapshot", adapter_id="snapshot"))
    store.recover("the server was restarted")
    store.live_session("s", "me")
    store.live_sampler("base", "me")
    store.live_sampler("saved", "me")
    with pytest.raises(UnknownName, match="restarted"):
        store.live_sampler("snapshot", "me")
    with pytest.raises(UnknownName, match="restarted"):
        store.live_run("s:train:0", "me")


def test_a_folder_belongs_to_one_server_at_a_time(store: Store, tmp_path: Path):
    with pytest.raises(FolderInUse, match="--data-dir"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_what_was_written_is_there_after_a_restart(store: Store, tmp_path: Path):
    path = save(store).path
    store.close()
    again = Store(tmp_path, clock=Clock())
    assert again.checkpoint(path, "me").adapter_config == ADAPTER
    again.close()


def test_a_path_splits_into_run_kind_and_name():
    assert split_path("tinker://s:train:0/weights/a") == ("s:train:0", "weights", "a")


@pytest.mark.parametrize(
    "path",
    ["", "a", "tinker://", "tinker://r/weights", "tinker://r/other/a", "tinker://r/weights/", "r/weights/a",
     "tinker://r/weights/a/b"],
)  # fmt: skip
def test_other_paths_are_refused(path: str):
    with pytest.raises(BadRequest, match="tinker://RUN/KIND/NAME"):
        split_path(path)


def test_a_file_of_an_earlier_release_gains_what_it_lacks_and_keeps_what_it_has(store: Store, tmp_path: Path):
    path = save(store).path
    store.close()
    with sqlite3.connect(tmp_path / "metadata.sqlite") as old:
        old.execute("ALTER TABLE checkpoints DROP COLUMN public")
        old.execute("ALTER TABLE sessions DROP COLUMN project_id")
    old.close()
    again = Store(tmp_path, clock=Clock())
    assert not again.checkpoint(path, "me").public
    assert again.session("s", "me").project_id is None
    again.close()


def test_clients_that_join_a_sampling_session_are_numbered_apart(store: Store):
    store.add_sampler(sampler("first"))
    store.add_sampler(sampler("second"))
    assert [store.join_sampler(each) for each in ("first", "first", "second", "first")] == [1, 2, 1, 3]


def test_a_public_checkpoint_is_everyones_to_read_and_its_owners_to_change(store: Store):
    row = save(store)
    store.set_checkpoint_public(row.id, public=True)
    assert store.checkpoint(row.path, "you").id == row.id
    assert store.readable_run("s:train:0", "you").id == "s:train:0"
    with pytest.raises(UnknownName, match="only its owner may change it"):
        store.own_checkpoint(row.path, "you")
    with pytest.raises(UnknownName):
        store.run("s:train:0", "you")


def test_an_expired_checkpoint_is_public_no_more(store: Store, clock: Clock):
    row = save(store, ttl_seconds=3600)
    store.set_checkpoint_public(row.id, public=True)
    clock.now += 3600
    assert store.list_runs("you", limit=10, offset=0, others=True) == ([], 0)
    for look in (store.checkpoint, lambda path, owner: store.readable_run("s:train:0", owner)):
        with pytest.raises(UnknownName):
            look(row.path, "you")


def test_a_copy_keeps_the_files_when_the_original_goes(store: Store):
    original = save(store, folder="shared")
    copy = store.copy_checkpoint(original, "s:train:9", "you", None)
    store.delete_checkpoint(original.id)
    assert store.folders_in_use() == {"shared"}
    assert store.checkpoint(copy.path, "you").adapter_config == ADAPTER
    with pytest.raises(UnknownName, match="deleted before it could be copied"):
        store.copy_checkpoint(original, "s:train:10", "you", None)
