"""What SkyRL's server of the protocol takes, in JAX on the CPU: driven by our client, with our own rows.

A server stays for as long as jobs want one of its kind. It compiles for every new shape, so everything is
done once before it is timed. It pads what it samples to the most sequences that it is set up for, so every
number of them has a server of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import httpx

from benchmarks import ours
from benchmarks.environments import SKYRL
from benchmarks.work import Job, Unavailable, Work
from cookbook.server_process import free_port

Measured = dict[str, list[float]]

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_MICRO_BATCH_SEQUENCES = 8
"""Sequences that go forward and backward at once: 2,048 tokens of the rows' 256, as others do."""
_MOST_SEQUENCES = 64
"""Sequences that it samples at once."""


@dataclass(frozen=True)
class _Server:
    url: str
    model: str
    """The folder that it was started with, which is the base model's name there."""
    pid: int


# ---- rows ----


def sample(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.sample, job)


def score(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.score, job)


def train(job: Job) -> Measured:
    """As ours; the memory is the most that server and engine held meanwhile, compiled code among it."""
    server = _lasting(job).server
    _forget_peaks(server.pid)
    measured = _measured(ours.train_shared, job)
    return {**measured, "peak_rss_mib": [_peak_rss_mib(server.pid)]}


def rl_step(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.rl_step, job)


def opd_step(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.opd_step, job)


def weights_to_sampler(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.weights_to_sampler, job)


def request(job: Job) -> Measured:
    """As ours, over HTTP."""
    return _measured(ours.request, job)


def cold_start(job: Job) -> Measured:
    """Seconds from the server's command line to the first token; first those of a server that is there."""
    seconds = [_lasting(job).first_token_seconds]
    for _ in range(job.repeats - 1):
        with _running(job) as (server, started):
            _sample_one_token(server)
            seconds.append(perf_counter() - started)
    return {"seconds": seconds}


def _measured(measure: Callable[[Job], Measured], job: Job) -> Measured:
    with _lasting(job).awake() as server:
        return measure(replace(job, base_url=server.url, model=server.model, compiles=True))


def _sample_one_token(server: _Server) -> None:
    work = Work(prompt=8)
    ours.request(
        Job(function="", model=server.model, vocab_size=256, work=work, base_url=server.url, repeats=0)
    )


# ---- the server ----


class _Lasting:
    """A server, and how long it took to its first token."""

    def __init__(self, job: Job) -> None:
        self._stack = ExitStack()
        self.server, started = self._stack.enter_context(_running(job))
        _sample_one_token(self.server)
        self.first_token_seconds = perf_counter() - started
        os.killpg(self.server.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[_Server]:
        """The server, which otherwise stands still: its engine looks for work ten times a second."""
        os.killpg(self.server.pid, signal.SIGCONT)
        try:
            yield self.server
            _unload_runs(self.server.url)
        finally:
            os.killpg(self.server.pid, signal.SIGSTOP)

    def close(self) -> None:
        """Stop it."""
        self._stack.close()


_there: dict[tuple[str, str, int], _Lasting] = {}
"""The server that is running, by model, dtype and sequences: one at a time, as each takes gigabytes."""


def _lasting(job: Job) -> _Lasting:
    kind = (job.folder, job.dtype, _sequences(job))
    if kind not in _there:
        _close()
        _there[kind] = _Lasting(job)
    return _there[kind]


@atexit.register
def _close() -> None:
    while _there:
        _there.popitem()[1].close()


def _sequences(job: Job) -> int:
    return min(job.work.sequences, _MOST_SEQUENCES)


@contextmanager
def _running(job: Job) -> Iterator[tuple[_Server, float]]:
    """A server, and the `perf_counter` at its command line. It stops with the block."""
    with TemporaryDirectory() as scratch:
        home, port = Path(scratch), free_port()
        model = _model_in(job.dtype, Path(job.folder), home / "model")
        configuration = {
            "base_model": str(model),
            "backend": "jax",
            "backend_config": {
                "max_lora_adapters": 2,  # the base model's and one run's: every further one costs time
                "max_lora_rank": 32,
                "train_micro_batch_size": _MICRO_BATCH_SEQUENCES,
                "sample_max_num_sequences": _sequences(job),
            },
            "checkpoints_base": str(home / "checkpoints"),
            "database_url": f"sqlite:///{home / 'server.db'}",
        }
        command = [SKYRL.python(), "-m", "benchmarks.alternatives.skyrl_launcher", "api", str(port)]
        started = perf_counter()
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, json.dumps(configuration)],
                stdout=log,
                stderr=log,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(process, url, home / "log")
            yield _Server(url, str(model), process.pid), started
        finally:
            process.terminate()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _model_in(dtype: str, folder: Path, copy: Path) -> Path:
    """The same model whose configuration names this dtype, which is the one that SkyRL computes in."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name == "config.json":
            changed = {**json.loads(path.read_text()), "dtype": dtype}
            (copy / path.name).write_text(json.dumps(changed))
        else:
            (copy / path.name).symlink_to(path)
    return copy


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/api/v1/healthz", timeout=2.0).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise Unavailable(f"its server did not start: {last}")


def _unload_runs(url: str) -> None:
    """Make room for the next run: there is place for one."""
    runs = httpx.get(f"{url}/api/v1/training_runs", params={"limit": 100}).json()["training_runs"]
    for run in runs:
        body = {"type": "unload_model", "model_id": run["training_run_id"]}
        httpx.post(f"{url}/api/v1/unload_model", json=body)


# ---- memory ----


def _family(pid: int) -> list[Path]:
    """A process and those that it started, as folders of /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [Path(f"/proc/{pid}"), *(each for child in children for each in _family(int(child)))]


def _forget_peaks(pid: int) -> None:
    for process in _family(pid):
        (process / "clear_refs").write_text("5")


def _peak_rss_mib(pid: int) -> float:
    kibibytes = [
        int(line.split()[1])
        for process in _family(pid)
        for line in (process / "status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    if not kibibytes:
        raise Unavailable("this system does not say how much memory a process has held")
    return sum(kibibytes) / 2**10
