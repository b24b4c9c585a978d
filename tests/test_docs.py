"""The documentation says what is: its code runs, its links lead somewhere, its routes are the server's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import pytest
from fastapi import APIRouter

import tinkerlite
from docs import regenerate
from tinkerlite.doctor import examine
from tinkerlite_server import routes

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_files_and_headings_that_exist(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(linked), f"{page.name} links to {target}"


def headings(page: Path) -> set[str]:
    """Anchors as code hosts make them of a page's headings."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_code_of_the_recipes_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/recipes.md", "exec"), {"__name__": "docs"})


def test_the_protocol_page_lists_the_routes_of_the_server():
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(GET|POST|PUT|DELETE) ([a-z_]+[^` ]*)`", text))
    served = set(served_by(routes))
    assert documented == served


def served_by(package: ModuleType, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Methods and paths of a package of routes; a package within it has a prefix of its own."""
    for each in iter_modules(package.__path__):
        section = import_module(f"{package.__name__}.{each.name}")
        if each.ispkg:
            yield from served_by(section, section.PREFIX)
            continue
        for route in getattr(section, "router", APIRouter()).routes:
            path = f"{prefix}{route.path}".removeprefix("/").replace(":path", "")
            yield from ((method, path) for method in route.methods)


def test_the_demos_table_is_made_of_the_committed_results():
    assert regenerate.block_of(regenerate.RECIPES, "demo") == regenerate.demo_table()


def test_the_readme_shows_every_check_of_the_doctor(local_service: tinkerlite.ServiceClient):
    """The block is written by docs/regenerate.py; here the checks are compared, as the numbers vary."""
    shown = regenerate.block_of(regenerate.README, "doctor")
    checks = re.findall(r"^(?:pass|warn|skip)  ([^:]+):", shown, re.MULTILINE)
    models = local_service.connection.endpoint.local_models
    assert checks == [finding.check for finding in examine(base_url=f"local://{','.join(models)}")]


def test_every_file_and_module_that_the_pages_name_exists():
    names = {
        path.name
        for part in ("tinkerlite", "server", "cookbook", "benchmarks", "tests")
        for path in (ROOT / part).rglob("*.py")
    }
    for page in PAGES:
        for name in re.findall(r"`(?:[\w.]+/)*([a-z_]+\.py)`", page.read_text(encoding="utf-8")):
            assert name in names, f"{page.name} speaks of {name}"


def test_every_test_that_the_pages_cite_exists():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in tests, f"{page.name} cites {name}"
