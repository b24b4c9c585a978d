"""The official cookbook's own tests of its SDK code, with our client in the SDK's place.

They run twice, in the environment of the official clients: as they are, and with the name `tinker`
for tinkerlite. What fails without us (models that it would download, packages that are not
installed) says nothing about us. TINKERLITE_COOKBOOK_TESTS names the unpacked source distribution.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PLUGIN_FOLDER = Path(__file__).parent
USES_THE_SDK = re.compile(r"^\s*(import tinker\b|from tinker[. ])", re.MULTILINE)
BAR = 0.95


@pytest.fixture
def official_python() -> str:
    interpreter = os.environ.get("TINKERLITE_OFFICIAL_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    return interpreter


@pytest.fixture
def cookbook() -> Path:
    folder = Path(os.environ.get("TINKERLITE_COOKBOOK_TESTS") or "/nowhere")
    if not (folder / "tinker_cookbook").is_dir():
        pytest.skip("TINKERLITE_COOKBOOK_TESTS names no source distribution of the official cookbook")
    return folder


@pytest.mark.compat
@pytest.mark.timeout(400)
def test_nearly_all_of_the_cookbooks_tests_that_pass_with_the_official_sdk_pass_with_ours(
    official_python: str, cookbook: Path, tmp_path: Path
):
    official, ours = tmp_path / "official.xml", tmp_path / "ours.xml"
    running = [
        start(official_python, cookbook, official, []),
        start(official_python, cookbook, ours, ["-p", "tinker_alias"]),
    ]
    said = [process.communicate(timeout=380)[0] for process in running]
    expected = {name for name, problem in outcomes(official, said[0]).items() if problem is None}
    under_alias = outcomes(ours, said[1])
    failed = {name: under_alias.get(name, "was not run") for name in sorted(expected)}
    failed = {name: problem for name, problem in failed.items() if problem is not None}
    passed = len(expected) - len(failed)
    print(f"{passed} of {len(expected)} pass with tinkerlite")
    for name, problem in failed.items():
        print(f"  {name}: {problem}")
    assert len(expected) > 500, said[0][-2000:]
    assert passed >= BAR * len(expected), failed


def start(python: str, cookbook: Path, report: Path, options: list[str]) -> subprocess.Popen[str]:
    files = [
        str(path.relative_to(cookbook))
        for path in sorted((cookbook / "tinker_cookbook").rglob("*_test.py"))
        if USES_THE_SDK.search(path.read_text(encoding="utf-8"))
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PLUGIN_FOLDER), str(PLUGIN_FOLDER.parents[1])]),
        "TINKER_API_KEY": "tml-any",
        "TINKER_TELEMETRY": "0",
        "HF_HUB_OFFLINE": "1",
    }
    quiet = ["-q", "--tb=native", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return subprocess.Popen(
        [python, "-m", "pytest", *options, *quiet, f"--junitxml={report}", *files],
        cwd=cookbook,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcomes(report: Path, said: str) -> dict[str, str | None]:
    """Each test's problem, or None where it passed."""
    assert report.is_file(), said[-4000:]
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('classname')}.{case.get('name')}"
        found[name] = None if problem is None else (problem.get("message") or problem.tag).splitlines()[0]
    return found
