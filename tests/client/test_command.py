"""The `tinkerlite` command as such: what it lists, what it costs, and how it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.client.command import Command, command
from tests.client.scripted_server import Answer, ScriptedServer, eventually
from tinkerlite import cli

OFFER = {"supported_models": [{"model_name": "tiny", "max_context_length": 512, "trainable": True}]}
PROCESS = [sys.executable, "-m", "tinkerlite.cli"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


# ---- help ----


def test_help_lists_the_commands_and_shows_examples(run: Command):
    said = run()
    assert (said.status, said.err) == (0, "")
    for name in ("serve", *cli.COMMANDS):
        assert f"\n    {name}" in said.out
    assert "examples:\n  tinkerlite serve" in said.out
    assert run("--help") == said


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_explains_itself_with_examples(run: Command, name: str):
    said = run(name, "--help")
    assert said.status == 0
    assert f"usage: tinkerlite {name}" in said.out
    assert f"examples:\n  tinkerlite {name}" in said.out


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], "torch transformers tinkerlite_server httpx pydantic rich numpy"),
        (["sample", "--help"], "torch transformers tinkerlite_server"),
        (["doctor", "--help"], "torch transformers tinkerlite_server"),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], heavy: str):
    script = (
        "import sys\nfrom tinkerlite.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy.split()} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_version(run: Command):
    said = run("--version")
    assert said.status == 0
    assert said.out.startswith("tinkerlite ")


# ---- models ----


def test_models_prints_a_table(run: Command, server: ScriptedServer):
    server.script("get_server_capabilities", Answer(body=OFFER))
    said = run("models", "--base-url", server.url)
    header, _, row = said.out.splitlines()
    assert header.split()[:3] == ["model", "context", "vocabulary"]
    assert row.split() == ["tiny", "512", "?", "?", "yes", "?", "?", "?"]


def test_models_prints_json_for_scripts(run: Command, server: ScriptedServer):
    server.script("get_server_capabilities", Answer(body=OFFER))
    said = run("models", "--base-url", server.url, "--json")
    assert (said.status, said.json, said.err) == (0, OFFER, "")


def test_listing_models_leaves_no_session_behind(run: Command, server: ScriptedServer):
    server.script("get_server_capabilities", Answer(body=OFFER))
    run("models", "--base-url", server.url)
    assert server.sent("create_session") == []


def test_the_server_and_the_key_come_from_the_environment(
    run: Command, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-theirs")
    monkeypatch.setenv("TINKERLITE_API_KEY", "tml-ours")
    server.script("get_server_capabilities", Answer(body=OFFER))
    assert run("models").status == 0
    assert {request.headers["x-api-key"] for request in server.received} == {"tml-ours"}


# ---- failures: one line, no traceback ----


def one_line(said: str) -> str:
    assert said.startswith("tinkerlite: ")
    assert said.count("\n") == 1, said
    return said


def test_a_base_url_that_is_none(run: Command):
    said = run("models", "--base-url", "nowhere", "--json")
    assert (said.status, said.out) == (1, "")
    assert one_line(said.err).startswith("tinkerlite: base_url 'nowhere' must start with http://")


def test_no_server(run: Command):
    said = run("models", "--base-url", "http://127.0.0.1:9", "--json")
    assert (said.status, said.out) == (1, "")
    assert "no server answers at http://127.0.0.1:9" in one_line(said.err)


def test_a_wrong_key(run: Command, server: ScriptedServer):
    server.script("client/config", Answer(401, {"detail": "this API key is unknown"}))
    said = run("models", "--base-url", server.url, "--json")
    assert (said.status, said.out) == (1, "")
    assert "this API key is unknown" in one_line(said.err)
    assert "--api-key, TINKERLITE_API_KEY or TINKER_API_KEY" in said.err


def test_a_local_model_that_is_not_there(run: Command, tmp_path: Path):
    said = run("models", "--base-url", f"local://{tmp_path / 'nothing'}")
    assert (said.status, said.out) == (1, "")
    assert "no server starts for local://" in one_line(said.err)


def test_an_unknown_command_is_a_usage_error(run: Command):
    said = run("dance")
    assert (said.status, said.out) == (2, "")
    assert "'dance'" in said.err


def test_a_command_of_a_distribution_that_is_not_installed(run: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    said = run("serve", "--model", "x")
    assert said.status == 2
    advice = "install it, from a checkout: pip install -e server"
    assert one_line(said.err) == f"tinkerlite: serve comes with tinkerlite-server; {advice}\n"


@pytest.mark.parametrize(
    ("arguments", "hangs"),
    [
        (["models"], "get_server_capabilities"),
        (["doctor", "--student", "tiny", "--json"], "result of asample-0"),
    ],
)
def test_ctrl_c_is_a_line_and_130(server: ScriptedServer, arguments: list[str], hangs: str):
    never = threading.Event()
    server.script(hangs, Answer(body={}, after=never))
    running = subprocess.Popen(
        [*PROCESS, *arguments, "--base-url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert eventually(lambda: hangs in [request.key for request in server.received])
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        never.set()
        running.kill()
    assert (running.returncode, out, err) == (130, "", "tinkerlite: interrupted\n")
    sessions, ends = (server.sent(path) for path in ("create_session", "sessions/session/finish"))
    assert [end.json["reason"]["type"] for end in ends] == ["interrupted"] * len(sessions)


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_reader_that_has_gone_is_no_traceback(server: ScriptedServer, form: list[str]):
    gone = threading.Event()
    server.script("get_server_capabilities", Answer(body=OFFER, after=gone))
    running = subprocess.Popen(
        [*PROCESS, "models", "--base-url", server.url, *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    gone.set()
    assert running.wait(30) == 1
    assert running.stderr.read() == ""
    running.stderr.close()


def test_json_has_numbers_that_json_lacks_as_null(capsys: pytest.CaptureFixture[str]):
    from tinkerlite.cli.output import print_json

    print_json({"measured": [float("nan"), float("inf"), 1.5], "text": "Ġ€"})
    assert json.loads(capsys.readouterr().out) == {"measured": [None, None, 1.5], "text": "Ġ€"}
