"""Importing the package is cheap, and its names are where they are said to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tinkerlite

HEAVY = ("httpx", "pydantic", "rich", "google.protobuf", "numpy", "tenacity", "asyncio", "torch")


def test_importing_the_package_imports_nothing_heavy():
    script = f"import sys, tinkerlite; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_the_clients_imports_nothing_that_only_a_connection_needs():
    script = (
        "import sys; from tinkerlite import ServiceClient, TrainingClient, SamplingClient, types\n"
        "print([name for name in ('httpx', 'rich', 'tenacity', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_client_works_without_torch_and_transformers():
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import tinkerlite; [getattr(tinkerlite, name) for name in tinkerlite.__all__]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_type_checkers_see_the_names_that_there_are():
    assert tinkerlite.__file__ is not None
    tree = ast.parse(Path(tinkerlite.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.asname: imported.module
        for imported in block.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    assert declared == tinkerlite._HOME


def test_every_public_name_can_be_had():
    for name in tinkerlite.__all__:
        assert getattr(tinkerlite, name) is not None
    assert set(tinkerlite.__all__) <= set(dir(tinkerlite))
    assert tinkerlite.__version__.count(".") == 2
    assert not hasattr(tinkerlite, "teleport")


def test_a_module_is_imported_as_a_module():
    from tinkerlite import errors, types

    assert types.Datum is tinkerlite.Datum
    assert errors.TinkerError is tinkerlite.TinkerError
