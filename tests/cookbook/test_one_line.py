"""RL and on-policy distillation differ in one line, docstrings aside."""

import ast
from difflib import unified_diff
from pathlib import Path

import cookbook

RECIPES = Path(cookbook.__file__).parent


def code_lines(path: Path) -> list[str]:
    """Source lines without those of the module's docstring."""
    source = path.read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0]
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert docstring.end_lineno is not None
    return source.splitlines()[docstring.end_lineno :]


def changes(first: Path, second: Path) -> list[str]:
    diff = unified_diff(code_lines(first), code_lines(second), lineterm="", n=0)
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


def test_distillation_is_reinforcement_learning_with_one_line_changed():
    removed, added = changes(RECIPES / "rl.py", RECIPES / "opd.py")
    assert removed.removeprefix("-").strip() == "advantages=advantages.group_relative,"
    assert added.removeprefix("+").strip() == "advantages=advantages.reverse_kl(run.teacher),"
