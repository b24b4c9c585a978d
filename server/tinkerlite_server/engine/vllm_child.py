"""The program that runs vLLM: one base model, told through a pipe what to do.

    python -P vllm_child.py FD SCRATCH

It runs under the interpreter that has vLLM, which need not be the server's, so it imports
nothing of ours. vllm_process.py is its other end, and starts it. Messages are tuples of plain
values, a word first. The first that it gets is the fields of vLLM's `EngineArgs`; then come

    add     request id, token ids, fields of `SamplingParams`, adapter (id, name, folder) or None
    abort   request ids
    load    adapter
    drop    adapter id
    step    leave to make one step, which counts once there is something to do

and it answers with

    ready   vLLM's version, longest sequence           or    failed  why; it ends then
    refused request id, why
    made    one a step: (request id, tokens, logprobs, likeliest tokens, why it ended or None)
    loaded  adapter id, why not or None

It steps only with leave, so that it neither runs ahead of whoever reads nor trains against the
server's own work. When its pipe is closed it deletes the folder SCRATCH, where adapters come
from, and ends: also if the server was killed.
"""

# pyright: reportMissingImports=false
# (vLLM is not in the environment in which this is checked.)

from __future__ import annotations

import os
import shutil
import sys
from multiprocessing.connection import Connection
from typing import Any


class Runner:
    """vLLM's engine, and the pipe."""

    def __init__(self, engine: Any, pipe: Connection) -> None:
        self._engine = engine
        self._pipe = pipe
        self._leave = 0
        """Steps that may be made."""

    def run(self) -> None:
        """Obey until the pipe is closed.

        Raises:
            EOFError: it is.
        """
        while True:
            may_step = self._leave > 0 and self._engine.has_unfinished_requests()
            while self._pipe.poll(0 if may_step else None):
                word, *values = self._pipe.recv()
                getattr(self, f"_{word}")(*values)
                may_step = self._leave > 0 and self._engine.has_unfinished_requests()
            self._make_step()

    def _add(
        self, request_id: str, prompt: list[int], fields: dict[str, Any], adapter: tuple[int, str, str] | None
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        try:
            self._engine.add_request(
                request_id,
                {"type": "token", "prompt_token_ids": prompt},
                SamplingParams(
                    # The server knows which tokens stop a sample, and decodes text itself.
                    ignore_eos=True,
                    detokenize=False,
                    flat_logprobs=True,
                    output_kind=RequestOutputKind.DELTA,
                    **fields,
                ),
                lora_request=_lora_request(adapter),
            )
        except Exception as error:  # noqa: BLE001 - told to the server as this request's failure
            self._pipe.send(("refused", request_id, _in_words(error)))

    def _abort(self, request_ids: list[str]) -> None:
        self._engine.abort_request(request_ids)

    def _load(self, adapter: tuple[int, str, str]) -> None:
        try:
            self._engine.add_lora(_lora_request(adapter))
        except Exception as error:  # noqa: BLE001 - told to the server as this adapter's failure
            self._pipe.send(("loaded", adapter[0], _in_words(error)))
        else:
            self._pipe.send(("loaded", adapter[0], None))

    def _drop(self, adapter_id: int) -> None:
        self._engine.remove_lora(adapter_id)

    def _step(self) -> None:
        self._leave += 1

    def _make_step(self) -> None:
        self._leave -= 1
        self._pipe.send(("made", [_made(output) for output in self._engine.step()]))


def _lora_request(adapter: tuple[int, str, str] | None) -> Any:
    from vllm.lora.request import LoRARequest

    return None if adapter is None else LoRARequest(adapter[1], adapter[0], adapter[2])


def _made(output: Any) -> tuple[Any, ...]:
    """What one request got in a step.

    Of each position vLLM lists the sampled token first, then the likeliest.
    """
    [completion] = output.outputs
    flat = completion.logprobs
    spans = list(zip(flat.start_indices, flat.end_indices, strict=True))
    return (
        output.request_id,
        list(completion.token_ids),
        [flat.logprobs[start] for start, _ in spans],
        [(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end]) for start, end in spans],
        completion.finish_reason if output.finished else None,
    )


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def start(fields: dict[str, Any]) -> tuple[Any, str]:
    """vLLM's engine, and its version."""
    import vllm
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # A prompt that is read in parts ends vLLM if its request has a seed: generators on the CPU
        # cannot be set back. So each is read at once, and a pass has room for the longest.
        fields = {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(fields["max_model_len"], 4096),
            **fields,
        }
    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**fields)), vllm.__version__


def main() -> int:
    """Start vLLM and serve; the exit code."""
    pipe = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # what vLLM prints is no answer of the server's command
    try:
        try:
            engine, version = start(pipe.recv())
            pipe.send(("ready", version, engine.model_config.max_model_len))
            Runner(engine, pipe).run()
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # the server says what became of this
            pipe.send(("failed", _in_words(error)))
            raise
    except (EOFError, ConnectionError):
        return 0
    finally:
        shutil.rmtree(sys.argv[2], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
