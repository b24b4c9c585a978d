import json
from pathlib import Path

import pytest

from cookbook.file_lock import InUse
from cookbook.metrics import MetricsFile
from cookbook.run_folder import CannotResume, Checkpoint, RunFolder

SETTINGS = {"steps": 10, "rank": 4}


def started(path: Path, rows: int) -> RunFolder:
    """A run of which so many steps are done, without a checkpoint."""
    folder = RunFolder(path)
    folder.start("opd", SETTINGS)
    with MetricsFile(folder.metrics) as metrics:
        for step in range(rows):
            metrics.write({"step": step})
    return folder


def test_a_run_goes_on_from_its_checkpoint_and_the_rows_up_to_there(tmp_path: Path):
    folder = started(tmp_path, rows=7)
    folder.save_checkpoint(Checkpoint(step=5, path="tinker://run/weights/step-5"))
    position = RunFolder(tmp_path).resume("opd", SETTINGS)
    assert [row["step"] for row in position.rows] == [0, 1, 2, 3, 4]
    assert position.checkpoint == Checkpoint(step=5, path="tinker://run/weights/step-5")
    assert position.run_id == json.loads((tmp_path / "run.json").read_text())["id"]


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path):
    with pytest.raises(CannotResume, match="has no checkpoint: it was killed before its first one"):
        started(tmp_path, rows=3).resume("opd", SETTINGS)


def test_a_new_run_in_a_folder_forgets_the_checkpoint_of_the_old_one(tmp_path: Path):
    folder = started(tmp_path, rows=7)
    folder.save_checkpoint(Checkpoint(step=5, path="tinker://run/weights/step-5"))
    before = folder.resume("opd", SETTINGS).run_id
    assert folder.start("opd", SETTINGS).run_id != before
    with pytest.raises(CannotResume, match="has no checkpoint"):
        folder.resume("opd", SETTINGS)


def test_a_finished_run_says_so_and_how_to_train_on(tmp_path: Path):
    folder = started(tmp_path, rows=11)
    folder.save_checkpoint(Checkpoint(step=10, path="tinker://run/weights/opd"), is_finished=True)
    with pytest.raises(
        CannotResume, match=r"finished, after 10 steps.*--start-from tinker://run/weights/opd"
    ):
        folder.resume("opd", SETTINGS)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path):
    with RunFolder(tmp_path).held():
        refused = pytest.raises(InUse, match="another process is at work on the run in")
        with refused, RunFolder(tmp_path).held():
            pass
    with RunFolder(tmp_path).held():
        pass


def test_an_empty_folder_has_no_run(tmp_path: Path):
    with pytest.raises(CannotResume, match="has no run to resume; start one without --resume"):
        RunFolder(tmp_path).resume("opd", SETTINGS)


def test_a_run_of_other_settings_is_another_run(tmp_path: Path):
    folder = started(tmp_path, rows=1)
    with pytest.raises(CannotResume, match=r"has steps = 10, not 12; rank = 4, not 8\. .*another run"):
        folder.resume("opd", {"steps": 12, "rank": 8})
    with pytest.raises(CannotResume, match="has a run of opd, not of rl"):
        folder.resume("rl", SETTINGS)


def test_settings_that_only_stop_a_run_may_be_others(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.start("opd", SETTINGS | {"stop_when_collapsed": True})
    with MetricsFile(folder.metrics) as metrics:
        metrics.write({"step": 0})
    folder.save_checkpoint(Checkpoint(step=1, path="tinker://run/weights/step-1"))
    assert folder.resume("opd", SETTINGS | {"stop_when_collapsed": False}).checkpoint is not None


def test_a_checkpoint_ahead_of_the_rows_is_not_gone_on_from(tmp_path: Path):
    folder = started(tmp_path, rows=3)
    folder.save_checkpoint(Checkpoint(step=5, path="tinker://run/weights/step-5"))
    with pytest.raises(CannotResume, match="3 rows and the checkpoint 5 updates"):
        folder.resume("opd", SETTINGS)
