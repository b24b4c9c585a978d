"""The official clients, unmodified, against this server over real HTTP.

Their tests lie in `official/`, know nothing of tinkerlite, and run under a pytest of their own, in an
environment that has the clients: all at once, since what costs time is starting. Here each of their
files is one test, which shows what failed in it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.server.server_process import server_process
from tests.tiny import make_tiny_model

OFFICIAL = Path(__file__).parent / "official"
OLDER = ["0.16.1", "0.24.1"]
"""JSON alone in both directions; and the last one that asks the server which of the two it wants."""

Report = dict[str, list[str]]
"""By test file: an empty text for each test that passed, and what went wrong for each other one."""


@contextmanager
def serving_tiny_model(folder: Path, *options: str) -> Iterator[tuple[str, str]]:
    """A server's URL, and its one model."""
    model = str(make_tiny_model(folder / "tiny"))
    arguments = ("--model", model, "--port", "0", "--data-dir", str(folder / "data"), "--dtype", "float32")
    keys = ("--api-key", "tml-any", "--api-key", "tml-other")
    with server_process(*arguments, *keys, *options) as (_, url):
        yield url, model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with serving_tiny_model(tmp_path_factory.mktemp("official")) as running:
        yield running


def run_official_tests(
    python: Path,
    tests: str,
    served: tuple[str, str],
    report: Path,
    *,
    sdk: Path | None = None,
    timeout_seconds: float = 280,
) -> Report:
    """Run a folder of `official/` and read its report."""
    url, model = served
    environment = os.environ | {"TINKER_API_KEY": "tml-any", "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}
    if sdk is not None:
        environment["PYTHONPATH"] = str(sdk)
    finished = subprocess.run(
        [python, "-m", "pytest", tests, "--url", url, "--model", model, f"--junitxml={report}"],
        cwd=OFFICIAL,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    # pytest writes the report last: with one, an interpreter that aborts on its way out (daemon threads of
    # the client's libraries) has said all it had to say; without one, it crashed in the middle.
    assert finished.returncode < 2, finished.stdout + finished.stderr
    assert report.exists(), finished.stdout + finished.stderr
    outcomes: Report = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].rpartition(".")[2]
        wrong = [
            f"{case.attrib['name']} {each.tag}\n{each.text}" for each in case if each.tag != "properties"
        ]
        outcomes.setdefault(file, []).append("\n".join(wrong))
    return outcomes


def complain(outcomes: list[str]) -> None:
    wrong = [each for each in outcomes if each]
    assert outcomes, "no test ran"
    assert not wrong, f"{len(wrong)} of {len(outcomes)} tests failed\n" + "\n".join(wrong)


@pytest.fixture(scope="module")
def sdk_report(
    official_python: Path, served: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Report:
    report = tmp_path_factory.mktemp("report") / "sdk.xml"
    return run_official_tests(official_python, "sdk", served, report)


@pytest.mark.parametrize("file", sorted(path.stem for path in (OFFICIAL / "sdk").glob("test_*.py")))
def test_the_official_sdk(sdk_report: Report, file: str):
    complain(sdk_report.get(file, []))


def test_the_official_sdk_polls_once_for_a_whole_session_where_the_server_asks_for_it(
    official_python: Path, tmp_path: Path
):
    with serving_tiny_model(tmp_path, "--session-poller") as served:
        report = run_official_tests(official_python, "poller", served, tmp_path / "report.xml")
    complain(report.get("test_session_poller", []))


def test_the_official_sdk_compresses_and_sends_chunks_side_by_side_where_the_server_asks_for_it(
    official_python: Path, tmp_path: Path
):
    with serving_tiny_model(tmp_path, "--far-clients") as served:
        report = run_official_tests(official_python, "sdk/test_losses.py", served, tmp_path / "report.xml")
    complain(report["test_losses"])


@pytest.mark.parametrize("version", OLDER)
def test_an_older_sdk(
    official_python: Path, older_sdks: Path, served: tuple[str, str], tmp_path: Path, version: str
):
    report = run_official_tests(
        official_python, "older", served, tmp_path / "report.xml", sdk=older_sdks / version
    )
    complain([outcome for outcomes in report.values() for outcome in outcomes])


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_official_recipes_improve_what_they_train(official_python: Path, tmp_path: Path):
    """Fine-tuning, preference optimization, reinforcement learning and on-policy distillation."""
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    arguments = ("--model", model, "--port", "0", "--data-dir", str(tmp_path / "data"))
    with server_process(*arguments) as (_, url):
        report = run_official_tests(
            official_python, "recipes", (url, model), tmp_path / "report.xml", timeout_seconds=870
        )
    complain(report["test_recipes"])
