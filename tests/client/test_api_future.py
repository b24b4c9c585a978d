"""APIFuture and the background loop: one result, however it is waited for, and a clean way out."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

import tinkerlite
from tests.client.scripted_server import Answer, ScriptedServer, eventually
from tinkerlite.errors import TinkerError
from tinkerlite.future import APIFuture
from tinkerlite.loop import background_loop
from tinkerlite.types import ModelInput

PROMPT = ModelInput.from_ints([1, 2])


async def soon(value: int, gate: threading.Event | None = None) -> int:
    if gate is not None:
        await asyncio.to_thread(gate.wait)
    return value


def future_of(value: int, gate: threading.Event | None = None) -> APIFuture[int]:
    return APIFuture(background_loop().submit(soon(value, gate)), "soon")


def test_a_result_may_be_waited_for_by_calling_and_by_awaiting_and_repeatedly():
    future = future_of(3)

    async def by_awaiting() -> list[int]:
        return [await future, await future, await future.result_async(), await future.coroutine()]

    assert future.result() == future.result() == 3
    assert asyncio.run(by_awaiting()) == [3, 3, 3, 3]
    assert asyncio.run(by_awaiting()) == [3, 3, 3, 3], "in a second event loop, too"


def test_a_blocking_call_inside_a_running_loop_just_works(server: ScriptedServer):
    async def notebook_cell() -> str:
        with tinkerlite.ServiceClient(base_url=server.url) as service:
            service.create_sampling_client(base_model="tiny").sample(
                PROMPT, 1, tinkerlite.SamplingParams(max_tokens=2)
            ).result()
            return service.session_id

    assert asyncio.run(notebook_cell()) == "session"


def test_futures_can_be_gathered():
    async def both() -> list[int]:
        return await asyncio.gather(future_of(1), future_of(2))

    assert asyncio.run(both()) == [1, 2]


def test_a_timeout_ends_the_wait_and_not_the_work():
    gate = threading.Event()
    future = future_of(7, gate)
    with pytest.raises(TimeoutError, match=r"soon: no result within 0\.01 s; it is still being worked on"):
        future.result(timeout=0.01)

    async def impatient() -> None:
        with pytest.raises(TimeoutError, match="still being worked on"):
            await future.result_async(timeout=0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(impatient())
    gate.set()
    assert future.result() == 7


def test_the_standard_future_underneath_cannot_cancel_the_work():
    gate = threading.Event()
    future = future_of(7, gate)
    assert future.future().cancel() is False
    gate.set()
    assert wait([future.future()]).not_done == set()
    assert future.result() == 7


def test_an_error_is_raised_each_time_it_is_asked_for():
    async def fails() -> int:
        raise ValueError("no")

    future = APIFuture(background_loop().submit(fails()), "fails")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            future.result()


def test_a_failure_that_nobody_asks_for_is_logged_rather_than_lost(caplog: pytest.LogCaptureFixture):
    gate = threading.Event()

    async def fails() -> int:
        await asyncio.to_thread(gate.wait)
        raise ValueError("out of memory")

    forgotten = APIFuture(background_loop().submit(fails()), "optim_step")
    del forgotten
    gate.set()
    assert eventually(
        lambda: "optim_step failed, and nobody asked for its result: out of memory" in caplog.text
    )


def test_its_repr_says_how_far_it_is():
    gate = threading.Event()
    future = future_of(7, gate)
    assert repr(future).startswith("<APIFuture soon: pending for ")
    gate.set()
    future.result()
    assert repr(future) == "<APIFuture soon: 7>"


def test_blocking_in_a_callback_is_an_error_and_no_deadlock():
    gate, seen = threading.Event(), []
    done, never = future_of(1, gate), future_of(2, threading.Event())

    def callback(_: object) -> None:
        for blocking in (never.result, lambda: background_loop().call(soon(1))):
            try:
                blocking()
            except (RuntimeError, TinkerError) as error:
                seen.append(type(error))

    done.future().add_done_callback(callback)
    gate.set()
    done.result()
    background_loop().call(soon(0))  # the callback ran before this
    assert seen == [RuntimeError, TinkerError]


# ---- ways out, each in a process of its own ----

WAITING = """
import sys, tinkerlite
service = tinkerlite.ServiceClient(base_url=sys.argv[1])
step = service.create_lora_training_client("tiny").optim_step(tinkerlite.AdamParams())
print("waiting", flush=True)
"""


def start(script: str, url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TINKERLITE_NO_PROGRESS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_ctrl_c_stops_waiting(server: ScriptedServer):
    server.script("result of optim_step-1", Answer(after=threading.Event()))
    process = start(WAITING + "step.result()", server.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    assert eventually(lambda: bool(server.sent("retrieve_future")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors


def test_the_interpreter_exits_though_something_is_still_being_waited_for(server: ScriptedServer):
    server.script("result of optim_step-1", Answer(after=threading.Event()))
    process = start(WAITING, server.url)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (0, "waiting\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_client_from_before_a_fork_says_so_and_a_new_one_works(server: ScriptedServer):
    script = """
import os, sys, tinkerlite
service = tinkerlite.ServiceClient(base_url=sys.argv[1])
child = os.fork()
if child == 0:
    try:
        service.get_server_capabilities()
    except tinkerlite.TinkerError as error:
        print(error, flush=True)
    with tinkerlite.ServiceClient(base_url=sys.argv[1]) as fresh:
        print(fresh.session_id, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    said, errors = start(script, server.url).communicate(timeout=60)
    assert said == "this client was made before a fork; make a new one in the child process\nsession\n"
    assert errors == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_future_from_before_a_fork_says_so_unless_it_was_done(server: ScriptedServer):
    script = """
import asyncio, os, sys, tinkerlite
service = tinkerlite.ServiceClient(base_url=sys.argv[1])
training = service.create_lora_training_client("tiny")
done = training.optim_step(tinkerlite.AdamParams())
done.result()
step = training.optim_step(tinkerlite.AdamParams())
child = os.fork()
if child == 0:
    done.result()
    for wait in (step.result, lambda: asyncio.run(step.coroutine())):
        try:
            wait()
        except tinkerlite.TinkerError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""
    server.script("result of optim_step-2", Answer(after=threading.Event()))
    said, _ = start(script, server.url).communicate(timeout=60)
    assert said == "this client was made before a fork; make a new one in the child process\n" * 2
