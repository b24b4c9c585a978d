"""A recipe that is killed (SIGKILL, nothing can be caught) and resumed, against one that ran through.

So is the server under it. All in fp32: a request that is alone gets the same numbers whenever it is sent, and
how a server packs those that meet moves the last digits.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from cookbook import opd, sft
from cookbook.metrics import Row, figures, read_metrics
from cookbook.run_folder import RunFolder
from tests.server.server_process import server_process
from tinkerlite import RequestFailedError, ServiceClient
from tinkerlite.errors import RequestErrorCategory

ROOT = Path(__file__).parent.parent.parent
STEPS, EVERY = 12, 4
SIZES = ["--steps", str(STEPS), "--held-out", "1", "--max-tokens", "12", "--rank", "4"]
MEASURED = {"seconds", "tokens_per_second"}
"""Figures that no two runs share."""


class Restarted:
    """A server that can be killed and started again, at the same place on the same store."""

    def __init__(self, model: Path, store: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._arguments = ["--model", str(model), "--port", str(port), "--data-dir", str(store)]
        self._processes = ExitStack()
        self.start()

    def start(self) -> None:
        self._process, self.url = self._processes.enter_context(server_process(*self._arguments))

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait() == -signal.SIGKILL

    def close(self) -> None:
        self._processes.close()


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    server = Restarted(tiny_folder, tmp_path_factory.mktemp("data"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def flags(server: Restarted, tiny_folder: Path) -> list[str]:
    where = ["--base-url", server.url, "--model", str(tiny_folder), "--checkpoint-every", str(EVERY)]
    return [*where, *SIZES]


@pytest.fixture(scope="module")
def distilling(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of an on-policy run with a teacher that knows something else."""
    folder = tmp_path_factory.mktemp("teacher")
    sft.main([*flags, "--steps", "1", "--learning-rate", "0.03", "--out", str(folder)])
    saved = json.loads((folder / "checkpoint.json").read_text())["path"]
    teacher = saved.replace("/weights/", "/sampler_weights/")
    return [*flags, "--teacher", teacher]


def uninterrupted(distilling: list[str], out: Path) -> list[Row]:
    """The rows of a run that nothing happened to."""
    opd.main([*distilling, "--out", str(out)])
    rows = deterministic(out)
    # There is something to get wrong: the student moves at every step.
    assert len({row["reverse_kl"] for row in rows}) == STEPS + 1
    return rows


@contextmanager
def running(
    recipe: ModuleType, flags: list[str], out: Path, rows: int
) -> Generator[subprocess.Popen[str], None, None]:
    """The recipe in a process of its own, once the file has so many rows; killed with the block."""
    command = [sys.executable, "-m", recipe.__name__, *flags, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            deadline = time.monotonic() + 120
            while count_rows(out) < rows:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield process
        finally:
            process.kill()
            process.wait()


def run_and_kill(recipe: ModuleType, flags: list[str], out: Path, rows: int) -> None:
    with running(recipe, flags, out, rows) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def count_rows(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def deterministic(out: Path) -> list[Row]:
    rows = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_resumes_as_if_nothing_had_happened(
    server: Restarted,
    distilling: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    distilling = [*distilling, "--prompts-per-step", "1", "--group-size", "1"]
    whole = uninterrupted(distilling, tmp_path_factory.mktemp("whole"))
    run_and_kill(opd, distilling, tmp_path, rows=EVERY + 2)
    done = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    checkpoint = json.loads((tmp_path / "checkpoint.json").read_text())
    assert EVERY <= checkpoint["step"] < len(done) < STEPS

    capsys.readouterr()
    opd.main([*distilling, "--out", str(tmp_path), "--resume"])
    assert f"resumed at step {checkpoint['step']}" in capsys.readouterr().out
    assert deterministic(tmp_path) == whole
    kept = b"".join(done[: checkpoint["step"]])
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(kept)

    # And once it is finished, it is; nothing but its final weights stays on the server.
    before = contents(tmp_path)
    with pytest.raises(
        SystemExit, match=rf"finished, after {STEPS} steps.*--start-from tinker://\S+/weights/opd"
    ):
        opd.main([*distilling, "--out", str(tmp_path), "--resume"])
    assert contents(tmp_path) == before
    with ServiceClient(base_url=server.url) as service:
        left = service.create_rest_client().list_user_checkpoints(limit=100).result().checkpoints
    assert not [c for c in left if "step-" in c.checkpoint_id]


def test_a_run_whose_server_is_killed_says_how_to_go_on_and_does(
    server: Restarted, distilling: list[str], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    # The teacher scores groups as they finish, in whatever company they then are.
    distilling = [*distilling, "--prompts-per-step", "2", "--group-size", "2"]
    whole = uninterrupted(distilling, tmp_path_factory.mktemp("whole"))
    with running(opd, distilling, tmp_path, rows=EVERY + 2) as process:
        server.kill()
        server.start()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    step = json.loads((tmp_path / "checkpoint.json").read_text())["step"]
    assert "the server was restarted" in said
    assert f"To go on from step {step}, give the same command with --resume." in said
    opd.main([*distilling, "--out", str(tmp_path), "--resume"])
    for resumed, expected in zip(deterministic(tmp_path), whole, strict=True):
        assert figures(resumed) == pytest.approx(figures(expected), rel=1e-5, abs=1e-5)


def test_supervised_runs_of_all_weights_resume_as_well(flags: list[str], tmp_path: Path):
    flags = [*flags, "--batch-size", "4", "--rank", "0"]
    sft.main([*flags, "--out", str(tmp_path / "whole")])
    run_and_kill(sft, flags, tmp_path / "killed", rows=EVERY + 1)
    sft.main([*flags, "--out", str(tmp_path / "killed"), "--resume"])
    assert deterministic(tmp_path / "killed") == deterministic(tmp_path / "whole")


def test_other_settings_are_refused_by_name_and_nothing_is_touched(flags: list[str], tmp_path: Path):
    short = [*flags, "--out", str(tmp_path), "--steps", "1"]
    sft.main(short)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as refused:
        sft.main([*short, "--resume", "--learning-rate", "0.5", "--rank", "8"])
    assert "has rank = 4, not 8; learning_rate = 0.001, not 0.5. What is resumed" in str(refused.value)
    assert contents(tmp_path) == before


def test_on_a_server_without_the_checkpoint_it_is_said_where_it_is(flags: list[str], tmp_path: Path):
    short = [*flags, "--out", str(tmp_path), "--steps", "1"]
    sft.main(short)
    elsewhere = {"step": 1, "path": "tinker://elsewhere:train:0/weights/step-1", "is_finished": False}
    (tmp_path / "checkpoint.json").write_text(json.dumps(elsewhere))
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match=r"elsewhere:train:0/weights/step-1 is on the server that saved it"):
        sft.main([*short, "--resume"])
    assert contents(tmp_path) == before


def test_a_server_without_room_for_it_is_no_server_without_the_checkpoint(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = [*flags, "--out", str(tmp_path), "--steps", "1"]
    sft.main(short)
    saved = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(saved | {"is_finished": False}))
    said = "training all weights takes 9 bytes, and 0 are free"
    full = RequestFailedError(said, "request", RequestErrorCategory.User)

    def refuse(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr(ServiceClient, "create_training_client_from_state_with_optimizer", refuse)
    with pytest.raises(SystemExit, match="0 are free\nIf there is no room: the run that was killed") as exit:
        sft.main([*short, "--resume"])
    assert "is on the server that saved it" not in str(exit.value)


def test_nobody_reads_where_a_run_stands_while_it_is_still_being_written(flags: list[str], tmp_path: Path):
    """Two would go on from one checkpoint, and the second write its rows over the first's."""
    short = [*flags, "--out", str(tmp_path), "--steps", "1"]
    with (
        RunFolder(tmp_path).held(),
        pytest.raises(SystemExit, match=f"another process is at work on the run in {tmp_path}"),
    ):
        sft.main([*short, "--resume"])  # which would otherwise find no run there
    absent = tmp_path / "absent"
    with pytest.raises(SystemExit, match="has no run to resume"):
        sft.main([*flags, "--out", str(absent), "--resume"])
    assert not absent.exists()


def test_a_backend_whose_checkpoints_end_with_the_process_cannot_be_resumed_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TINKERLITE_DATA_DIR", raising=False)
    with pytest.raises(SystemExit, match="Set TINKERLITE_DATA_DIR"):
        sft.main(["--base-url", f"local://{tiny_folder}", "--out", str(tmp_path), "--resume"])
    monkeypatch.setenv("TINKER_BASE_URL", f"local://{tiny_folder}")
    with pytest.raises(SystemExit, match="Set TINKERLITE_DATA_DIR"):
        sft.main(["--out", str(tmp_path), "--resume"])


def test_local_checkpoints_outlive_the_server_in_a_folder_that_was_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKERLITE_DATA_DIR", str(tmp_path / "data"))
    url = f"local://{tiny_folder}"
    with ServiceClient(base_url=url) as service:
        trainer = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
        path = trainer.save_state("kept").result().path
    with ServiceClient(base_url=url) as service:
        assert service.create_training_client_from_state_with_optimizer(path).get_info().lora_rank == 4
