"""The map of the code, held by walking its imports: what each part may know, and what it may not.

    cookbook -> tinkerlite -> types, wire, errors <- tinkerlite_server
    inside the server: app -> routes -> scheduler -> engine

To break a rule is a decision: change it here, and say why in docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT, SERVER, COOKBOOK = ROOT / "tinkerlite", ROOT / "server" / "tinkerlite_server", ROOT / "cookbook"


@dataclass(frozen=True)
class Import:
    """One imported module, by whom and where."""

    importer: str
    """Dotted, as in "tinkerlite_server.routes.training"."""
    module: str
    """Dotted; for `from a import b` where a.b is a file of ours, a.b."""
    line: int
    deferred: bool
    """Inside a function: the cost, and the dependency, arise only when that is called."""

    def is_of(self, *packages: str) -> bool:
        """Whether it is one of these, or lies within one."""
        return any(self.module == name or self.module.startswith(f"{name}.") for name in packages)

    def __str__(self) -> str:
        return f"{self.importer} imports {self.module} (line {self.line})"


@cache
def imports_of(package: Path) -> tuple[Import, ...]:
    """All imports that can run, in every module of a package; those for type checkers alone are not."""
    found: list[Import] = []
    for path in sorted(package.rglob("*.py")):
        importer = dotted(path, package.parent)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, deferred in statements(tree):
            for module in modules(node, importer, is_package=path.name == "__init__.py"):
                found.append(Import(importer, module, node.lineno, deferred))
    assert found, f"{package} has no imports at all; was it moved?"
    return tuple(found)


def dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, deferred
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, deferred or is_function)


def modules(node: ast.Import | ast.ImportFrom, importer: str, *, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        above = importer.split(".")[: len(importer.split(".")) - node.level + is_package]
        base = ".".join([*above, *([base] if base else [])])
    for alias in node.names:
        yield f"{base}.{alias.name}" if is_ours(f"{base}.{alias.name}") else base


def is_ours(module: str) -> bool:
    path = Path(*module.split("."))
    roots = (ROOT, ROOT / "server")
    return any((r / path).is_dir() or (r / path).with_suffix(".py").is_file() for r in roots)


def within(importer: str, *packages: str) -> bool:
    return Import("", importer, 0, False).is_of(*packages)


def broken(imports: list[Import]) -> str:
    return "\n".join(map(str, imports))


# ---- the three parts ----


def test_the_client_never_imports_the_server_or_the_cookbook():
    wrong = [i for i in imports_of(CLIENT) if i.is_of("tinkerlite_server", "cookbook", "benchmarks")]
    assert not wrong, broken(wrong)


def test_importing_the_client_imports_neither_torch_nor_transformers():
    wrong = [i for i in imports_of(CLIENT) if i.is_of("torch", "transformers") and not i.deferred]
    assert not wrong, broken(wrong)


def test_only_the_tokenizer_module_of_the_client_uses_transformers():
    users = {i.importer for i in imports_of(CLIENT) if i.is_of("transformers", "tokenizers")}
    assert users <= {"tinkerlite.tokenizers"}


def test_the_client_depends_on_what_its_distribution_declares():
    declared = {"h11", "httpx", "numpy", "google", "pydantic", "pydantic_core", "rich", "tenacity"}
    eager = [i for i in imports_of(CLIENT) if not i.deferred and not is_standard(i.module)]
    wrong = [i for i in eager if not i.is_of("tinkerlite", *declared)]
    assert not wrong, broken(wrong)


def test_types_wire_and_errors_stand_on_nothing_else_of_the_client():
    """Deferred imports are for showing themselves in a notebook."""
    contract = ("tinkerlite.types", "tinkerlite.wire", "tinkerlite.errors")
    inside = [i for i in imports_of(CLIENT) if within(i.importer, *contract) and not i.deferred]
    wrong = [i for i in inside if i.is_of("tinkerlite") and not i.is_of(*contract)]
    assert not wrong, broken(wrong)


def test_the_server_uses_the_contract_of_the_client_and_nothing_else_of_it():
    ours = [i for i in imports_of(SERVER) if i.is_of("tinkerlite")]
    wrong = [i for i in ours if not i.is_of("tinkerlite.types", "tinkerlite.wire", "tinkerlite.errors")]
    assert ours
    assert not wrong, broken(wrong)


def test_the_cookbook_never_imports_torch_or_the_server():
    wrong = [i for i in imports_of(COOKBOOK) if i.is_of("torch", "tinkerlite_server", "benchmarks")]
    assert not wrong, broken(wrong)


def test_the_cookbook_uses_the_public_names_of_the_client():
    ours = [i for i in imports_of(COOKBOOK) if i.is_of("tinkerlite")]
    wrong = [i for i in ours if i.module not in ("tinkerlite", "tinkerlite.types", "tinkerlite.errors")]
    assert not wrong, broken(wrong)


# ---- inside the server ----

HTTP = ("fastapi", "starlette", "uvicorn")
TENSORS = ("torch", "transformers", "safetensors", "gguf", "huggingface_hub")
ENTRANCES = ("tinkerlite_server.serve", "tinkerlite_server.local")
"""They put a server together, so they see every layer."""
ABOVE_SCHEDULER = ("tinkerlite_server.app", "tinkerlite_server.routes", *ENTRANCES)
ENGINE = "tinkerlite_server.engine"
PROTOCOLS = "tinkerlite_server.engine.protocols"
LEAVES = ("tinkerlite_server.errors", "tinkerlite_server.durable")
"""They stand on nothing else of the server, and everything may stand on them."""


def test_only_the_engine_knows_tensors():
    wrong = [i for i in imports_of(SERVER) if i.is_of(*TENSORS) and not within(i.importer, ENGINE)]
    assert not wrong, broken(wrong)


def test_only_app_routes_and_entrances_know_http():
    wrong = [i for i in imports_of(SERVER) if i.is_of(*HTTP) and not within(i.importer, *ABOVE_SCHEDULER)]
    assert not wrong, broken(wrong)


def test_the_engine_imports_nothing_above_it():
    inside = [i for i in imports_of(SERVER) if within(i.importer, ENGINE) and i.is_of("tinkerlite_server")]
    wrong = [i for i in inside if not i.is_of(ENGINE, *LEAVES)]
    assert inside
    leaves = [i for i in imports_of(SERVER) if within(i.importer, *LEAVES) and i.is_of("tinkerlite_server")]
    assert not leaves, broken(leaves)
    assert not wrong, broken(wrong)


def test_the_scheduler_and_what_it_stands_on_import_neither_routes_nor_app():
    below = [i for i in imports_of(SERVER) if not within(i.importer, *ABOVE_SCHEDULER)]
    wrong = [i for i in below if i.is_of(*ABOVE_SCHEDULER)]
    assert not wrong, broken(wrong)


def test_routes_do_not_import_the_app():
    inside = [i for i in imports_of(SERVER) if within(i.importer, "tinkerlite_server.routes")]
    wrong = [i for i in inside if i.is_of("tinkerlite_server.app", *ENTRANCES)]
    assert not wrong, broken(wrong)


def test_an_engine_is_seen_through_its_protocols():
    """Entrances choose one; routes also read the catalog, to hand out tokenizer files."""
    outside = [
        i for i in imports_of(SERVER) if i.is_of(ENGINE) and not within(i.importer, ENGINE, *ENTRANCES)
    ]
    allowed = {"tinkerlite_server.routes": (PROTOCOLS, f"{ENGINE}.catalog")}
    wrong = []
    for each in outside:
        layer = ".".join(each.importer.split(".")[:2])
        if not each.is_of(*allowed.get(layer, (PROTOCOLS,))):
            wrong.append(each)
    assert not wrong, broken(wrong)


def test_the_protocols_need_nothing_but_numpy_and_the_contract():
    inside = [i for i in imports_of(SERVER) if i.importer == PROTOCOLS and not is_standard(i.module)]
    assert not [i for i in inside if not i.is_of("numpy", "tinkerlite.types", "tinkerlite_server.errors")]


@pytest.mark.parametrize(
    ("leaf", "allowed"),
    [
        ("futures", {"errors", "completions"}),
        ("completions", {"errors"}),
        (
            "store",
            {"schema", "tables", "records.sessions", "records.runs", "records.samplers"},
        ),
        ("records.access", {"errors", "tables"}),
        ("records.sessions", {"errors", "tables", "records.access"}),
        ("records.checkpoints", {"errors", "tables", "records.access"}),
        ("records.runs", {"errors", "tables", "records.checkpoints", "engine.protocols"}),
        ("records.samplers", {"errors", "tables", "records.access", "records.sessions"}),
        ("schema", {"errors", "tables"}),
        ("downloads", {"durable", "errors"}),
        ("model_card", {"engine.protocols"}),
        ("age_files", {"errors"}),
        ("tables", {"engine.protocols"}),
        ("settings", set()),
    ],
)
def test_leaves_import_no_other_part_of_the_server(leaf: str, allowed: set[str]):
    inside = [i for i in imports_of(SERVER) if i.importer == f"tinkerlite_server.{leaf}"]
    used = {i.module.removeprefix("tinkerlite_server.") for i in inside if i.is_of("tinkerlite_server")}
    assert used <= allowed


def test_the_trainer_and_the_sampler_never_import_each_other():
    trainer, sampler = f"{ENGINE}.trainer", f"{ENGINE}.sampler"
    pairs = {(i.importer, i.module) for i in imports_of(SERVER)}
    assert not pairs & {(trainer, sampler), (sampler, trainer)}


# ---- names and text ----


def test_no_module_is_called_after_what_it_does_not_say():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    packages = [CLIENT, SERVER, COOKBOOK, ROOT / "benchmarks", ROOT / "tests"]
    wrong = [p for package in packages for p in package.rglob("*") if p.stem in vague]
    assert not wrong


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    # Written in two parts, or this file would name them itself.
    folders = re.compile(
        "|".join("/" + name for name in ("work/", "root/", "home/", "Users/")) + r"|\.\./" + "shared"
    )
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if folders.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def text_files() -> Iterator[Path]:
    kinds = {".py", ".md", ".toml", ".json", ".jsonl", ".ipynb", ".proto", ".css", ".html", ".txt", ".yml"}
    folders = ("tinkerlite", "server", "cookbook", "tests", "benchmarks", "docs")
    yield from (p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds)
    yield from (p for p in ROOT.iterdir() if p.suffix in kinds or p.name == "Makefile")
    yield ROOT / ".ci" / "run"


def is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names
