"""A user installs what the server declares, not what this project's own tests happen to bring.

The environment made here has the declared distributions, with what they require, and no others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tinkerlite
import tinkerlite_server
from tests.server.engine.test_gguf import write_gguf
from tests.tiny import make_tiny_model

OURS = {
    "tinkerlite": Path(tinkerlite.__file__).parent,
    "tinkerlite-server": Path(tinkerlite_server.__file__).parent,
}

SERVE_A_GGUF_FILE = """
import sys
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits
import tinkerlite_server.app, tinkerlite_server.serve
model, limits = sys.argv[1], EngineLimits()
engine = LocalEngine(build_catalog([model], limits), limits)
engine.create_run("run", model, AdapterConfig(rank=2, alpha=32, seed=1))
print("served", *engine.catalog)
"""


def required(name: str, known: set[str] | None = None) -> set[str]:
    """A distribution and all that it requires, in turn; extras are nobody's requirement."""
    known = {name} if known is None else known
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        wanted = requirement.name.lower()
        if wanted not in known and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            known.add(wanted)
            required(wanted, known)
    return known


@pytest.fixture
def declared_environment(tmp_path: Path) -> Path:
    """A folder to import from: links to the files of the declared distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in required("tinkerlite-server"):
        if name in OURS:
            (folder / OURS[name].name).symlink_to(OURS[name])
            continue
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder


@pytest.mark.slow
def test_the_server_needs_nothing_that_it_does_not_declare(declared_environment: Path, tmp_path: Path):
    model = write_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "tiny.gguf")
    finished = subprocess.run(
        # -S leaves this environment's own packages out.
        [sys.executable, "-S", "-c", SERVE_A_GGUF_FILE, str(model)],
        env=os.environ
        | {"PYTHONPATH": str(declared_environment), "TINKERLITE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.strip() == f"served {model}"
