"""Flushing a folder: all of it, and how large it is."""

from pathlib import Path

from tinkerlite_server import durable


def test_a_folder_is_flushed_to_its_depth_names_last(tmp_path: Path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"12345")
    (tmp_path / "flat").write_bytes(b"123")
    flushed: list[Path] = []
    really = durable.flush
    monkeypatch.setattr(durable, "flush", lambda path: (flushed.append(path), really(path)))
    assert durable.sync_folder(tmp_path) == 8
    assert set(flushed) == {tmp_path, *tmp_path.rglob("*")}
    for path in flushed[:-1]:
        assert flushed.index(path) < flushed.index(path.parent)
