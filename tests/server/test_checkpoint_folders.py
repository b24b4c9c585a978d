from __future__ import annotations

from pathlib import Path

import pytest

from tinkerlite_server.checkpoint_folders import CheckpointFolders


@pytest.fixture
def folders(tmp_path: Path) -> CheckpointFolders:
    return CheckpointFolders(tmp_path)


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"12345")


def test_a_folder_is_registered_once_it_is_complete(folders: CheckpointFolders):
    registered: list[tuple[str, int]] = []
    folders.write("run.weights.a", fill, lambda name, size: registered.append((name, size)))
    [(name, size_bytes)] = registered
    assert name.startswith("run.weights.a.")
    assert size_bytes == 5
    assert (folders.path(name) / "weights").read_bytes() == b"12345"


def test_a_failure_while_writing_leaves_nothing(folders: CheckpointFolders, tmp_path: Path):
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folders.write("a", fail, lambda name, size: pytest.fail("it was registered"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_nothing_names_are_collected(folders: CheckpointFolders, tmp_path: Path):
    names: list[str] = []
    for label in ("kept", "forgotten"):
        folders.write(label, fill, lambda name, _: names.append(name))
    folders.collect(lambda: {names[0]})
    assert [path.name for path in tmp_path.iterdir()] == [names[0]]


def test_an_unfinished_folder_is_collected_only_when_nothing_can_be_writing(
    folders: CheckpointFolders, tmp_path: Path
):
    def collect_meanwhile(folder: Path) -> None:
        folders.collect(set)
        assert folder.exists()
        fill(folder)

    folders.write("a", collect_meanwhile, lambda name, size: None)
    (tmp_path / ".unfinished-of-a-crash").mkdir()
    folders.collect(set, unfinished=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_read_stays_until_the_last_reader_is_done(folders: CheckpointFolders):
    names: list[str] = []
    folders.write("forgotten", fill, lambda name, size: names.append(name))
    [name] = names
    with folders.reading(name):
        with folders.reading(name) as folder:
            folders.collect(set)
            assert folder is not None
            assert (folder / "weights").read_bytes() == b"12345"
        folders.collect(set)
        assert folders.path(name).exists()
    folders.collect(set)
    assert not folders.path(name).exists()


def test_who_comes_to_read_a_folder_that_was_collected_is_told(folders: CheckpointFolders):
    with folders.reading("forgotten") as folder:
        assert folder is None
