"""The `tinkerlite` command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.client.scripted_server import Answer, ScriptedServer
from tinkerlite import cli

OFFER = {"supported_models": [{"model_name": "tiny", "max_context_length": 512, "trainable": True}]}


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert "serve" in said
    assert "models" in said


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_status:
        cli.main(["--version"])
    assert exit_status.value.code == 0
    assert capsys.readouterr().out.startswith("tinkerlite ")


def test_models_prints_a_table(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    server.script("get_server_capabilities", Answer(body=OFFER))
    assert cli.main(["models", "--base-url", server.url]) == 0
    said = capsys.readouterr().out
    assert "tiny" in said
    assert "512" in said


def test_models_prints_json_for_scripts(server: ScriptedServer, capsys: pytest.CaptureFixture[str]):
    server.script("get_server_capabilities", Answer(body=OFFER))
    assert cli.main(["models", "--base-url", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == OFFER["supported_models"]


def test_listing_models_leaves_no_session_behind(server: ScriptedServer, capsys: pytest.CaptureFixture[str]):
    server.script("get_server_capabilities", Answer(body=OFFER))
    cli.main(["models", "--base-url", server.url])
    assert server.sent("create_session") == []


def test_an_error_is_a_line_and_a_status(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models", "--base-url", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("tinkerlite: base_url 'nowhere' must start with http://")


def test_an_unknown_command_is_refused():
    done = subprocess.run([sys.executable, "-m", "tinkerlite.cli", "dance"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "dance" in done.stderr
