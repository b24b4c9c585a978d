"""`tinkerlite serve`: the server as a process that listens on a port."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.errors import ServerError
from tinkerlite_server.settings import Limits, Settings, is_loopback

if TYPE_CHECKING:
    from tinkerlite_server.engine.local_engine import LocalEngine

DESCRIPTION = """\
Serve base models to clients of the Tinker protocol: sampling, scoring, and training, of LoRA adapters
or of all weights.

A model is named by its hub id, a folder or a GGUF file. Name several to have a student and its teacher in
one server. Weights are loaded when they are first used.
"""

EXAMPLES = """\
examples:
  tinkerlite serve --model HuggingFaceTB/SmolLM2-135M-Instruct
  tinkerlite serve --model ./student --model ./teacher --port 9000
  tinkerlite serve --model ./student --host 0.0.0.0 --api-key tml-secret
  tinkerlite serve --model ./student --sampler vllm --vllm max_lora_rank=64

Clients: ServiceClient(base_url="http://127.0.0.1:8000"). The official SDK wants a key that begins
with tml-, and takes any such key here unless --api-key is given. OpenAI's clients sample under
http://127.0.0.1:8000/oai/api/v1.
"""

SWITCH_SECONDS = 2e-4
"""How long a thread of Python waits before it asks the one that runs to make way. By default that is
5 ms, for which the engine's thread would wait whenever HTTP's is at work: to begin a request, and after
each of the hundreds of tensor operations of a pass."""
SPIN_COUNT = 7000
"""How often OpenMP's threads look for each other before they sleep, unless the environment says. By default
300,000 times, which wastes the core that the late one could use: with another process busy on one of two
cores, sampling from SmolLM2-135M falls to 0.15 of its speed, with 7,000 to 0.4; alone it loses 4 to 8%."""

PARENT_CHECK_SECONDS = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments.stop_with_parent is not None:
        threading.Thread(target=_stop_without, args=(arguments.stop_with_parent,), daemon=True).start()
    try:
        return _serve(arguments)
    except (ServerError, OSError) as error:
        print(f"tinkerlite serve: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinkerlite serve",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="NAME",
        help="hub id, folder or GGUF file; may be repeated",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="port; 0 takes a free one (default: %(default)s)")
    add(
        "--data-dir",
        type=Path,
        default=Path("~/.tinkerlite"),
        metavar="DIR",
        help="where checkpoints and their metadata are kept (default: %(default)s)",
    )
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="let in callers with this key alone; repeat for several. Each sees only its own work",
    )
    add(
        "--max-topk",
        type=int,
        default=Limits().max_topk,
        metavar="K",
        help="most alternatives a position that a sample request may ask for (default: %(default)s)",
    )
    add(
        "--session-poller",
        action="store_true",
        help="ask clients to wait for all samples of a session in one poll; for thousands of samples at once",
    )
    add(
        "--far-clients",
        action="store_true",
        help="ask clients to compress training data and to send its parts side by side; for slow lines",
    )
    add(
        "--custom-losses",
        action="store_true",
        help="run losses that clients upload as graphs, within bounds; without it clients run their own",
    )
    add(
        "--full-gib",
        type=float,
        default=EngineLimits().max_full_bytes / 2**30,
        metavar="GIB",
        help="most memory for runs that train all weights, about 20 bytes a parameter; 0 refuses them "
        "(default: %(default)g)",
    )
    add(
        "--prefix-cache-gib",
        type=float,
        default=EngineLimits().max_prefix_bytes / 2**30,
        metavar="GIB",
        help="most memory for conversations that may go on, whose next turn is then read from where the last "
        "one ended; 0 keeps none, so that no caller can tell by the time it takes what others asked "
        "(default: %(default)g)",
    )
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of base weights (default: bfloat16 where the hardware multiplies it, else float32)",
    )
    add(
        "--sampler",
        default="pytorch",
        choices=["pytorch", "vllm"],
        help="what makes completions; scoring and training are PyTorch's either way (default: %(default)s)",
    )
    add(
        "--vllm",
        type=_vllm_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of vLLM's engine arguments, such as max_lora_rank=64 or tensor_parallel_size=2; "
        "may be repeated",
    )
    add(
        "--vllm-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter of the environment that has vLLM (default: this one)",
    )
    add(
        "--stop-with-parent",
        type=int,
        metavar="PID",
        help="stop when the process that started this one, of this id, is gone, however it ended",
    )
    return parser


def _vllm_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON or else as text."""
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _raise_open_files() -> None:
    """As many open files as this user may have: each request that is waited for is one, and so is each file
    of a checkpoint, which a crowd must not keep from being saved."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS: the hard limit says "unlimited", and is not
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(arguments: argparse.Namespace) -> int:
    if not is_loopback(arguments.host) and not arguments.api_key:
        raise ServerError(
            f"listening on {arguments.host} would let in whoever can reach this machine; "
            "name the keys to let in with --api-key, or keep to --host 127.0.0.1"
        )
    if not all(arguments.api_key):
        raise ServerError("an --api-key is empty, which would let in whoever sends none")
    if arguments.max_topk < 0:
        raise ServerError(f"--max-topk is {arguments.max_topk}; it must be 0 (no alternatives) or more")
    if not arguments.full_gib >= 0:
        raise ServerError(f"--full-gib is {arguments.full_gib}; it must be 0 (no full fine-tuning) or more")
    if not arguments.prefix_cache_gib >= 0:
        raise ServerError(
            f"--prefix-cache-gib is {arguments.prefix_cache_gib}; it must be 0 (nothing is kept) or more"
        )
    if arguments.sampler != "vllm" and arguments.vllm:
        raise ServerError("--vllm sets what vLLM is started with; it goes with --sampler vllm")
    settings = Settings(
        data_dir=arguments.data_dir.expanduser(),
        host=arguments.host,
        port=arguments.port,
        api_keys=tuple(arguments.api_key),
        session_poller=arguments.session_poller,
        far_clients=arguments.far_clients,
        limits=Limits(max_topk=arguments.max_topk),
        custom_losses=arguments.custom_losses,
    )
    _raise_open_files()
    # A port in use shows at once, not after minutes of fetching a model.
    with _listen(settings.host, settings.port) as listener:
        app, engine = _build(arguments, settings)
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        ready = (
            f"tinkerlite is ready at http://{host}:{address[1]}\n"
            f"  models: {', '.join(app.state.service.catalog)}\n"
            f"  data:   {settings.data_dir}\n"
            f"  keys:   {len(settings.api_keys) or 'any'}\n"
            "Stop it with Ctrl-C."
        )
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            _Server(app, ready).run(sockets=[listener])
        finally:
            engine.close()
    return 0


def _stop_without(parent: int) -> None:
    """End this process as SIGTERM does, once another process is its parent, as it may be from the start."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _build(arguments: argparse.Namespace, settings: Settings) -> tuple[FastAPI, LocalEngine]:
    # Read once, when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    # Not before the arguments are known to be good: these imports take seconds.
    from tinkerlite_server.app import create_app
    from tinkerlite_server.engine.catalog import build_catalog
    from tinkerlite_server.engine.cuda_settings import sized_for_device
    from tinkerlite_server.engine.local_engine import LocalEngine
    from tinkerlite_server.engine.vllm_process import VllmSettings

    limits = sized_for_device(
        EngineLimits(
            device=arguments.device,
            dtype=arguments.dtype,
            max_full_bytes=int(arguments.full_gib * 2**30),
            max_prefix_bytes=int(arguments.prefix_cache_gib * 2**30),
        )
    )
    vllm = None
    if arguments.sampler == "vllm":
        vllm = VllmSettings(python=arguments.vllm_python, options=dict(arguments.vllm))
    engine = LocalEngine(build_catalog(arguments.model, limits), limits, vllm)
    return create_app(settings, engine), engine


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        ServerError: the port is taken, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named: asyncio switches Nagle's delay off (40 ms an answer) for TCP alone.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise ServerError(f"cannot listen on {host}:{port} ({error}); name another with --port") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and stops without waiting for held polls."""

    def __init__(self, app: FastAPI, ready: str) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._service = app.state.service
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal end the held polls, on the second everything."""
        if self._loop is not None:
            # Not here: a handler runs in the middle of anything, and what it interrupts may hold the lock.
            self._loop.call_soon_threadsafe(self._service.begin_shutdown)
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Being told to stop is no failure: unlike uvicorn's own, this does not raise the signal again."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
