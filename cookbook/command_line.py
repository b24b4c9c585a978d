"""Flags from configuration objects: the fields are the flags, their docstrings the help.

A recipe states its values once, in a frozen dataclass; `parse` lets the command line replace any
of them. Unknown flags are errors.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)


METAVARS = {int: "N", float: "X", str: "NAME"}
"""How `--help` writes the value of a flag; also the types that a field may have, besides bool and NAMES."""
NAMES = tuple[str, ...]
"""The type of a field whose flag may be repeated, a name each time."""


def parse(
    program: str, description: str | None, configs: Sequence[DataclassInstance], argv: Sequence[str] | None
) -> list[Any]:
    """The same configuration objects, with the values that `argv` names replaced.

    Args:
        program: as shown in the usage line, for example "python -m cookbook.opd".
        description: the recipe's docstring, shown as written.
        configs: instances whose fields are str, int, float, bool or NAMES; no name occurs twice.
        argv: None reads the process's own arguments.

    Exits with the reason where an object does not take a value.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for config in configs:
        heading = (inspect.getdoc(type(config)) or "").splitlines()[0].rstrip(".")
        _add_flags(parser.add_argument_group(heading), config)
    given = vars(parser.parse_args(argv))
    try:
        return [
            replace(config, **{field.name: _value(given[field.name]) for field in fields(config)})
            for config in configs
        ]
    except ValueError as error:
        parser.error(str(error))


def _value(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _add_flags(group: argparse._ArgumentGroup, config: DataclassInstance) -> None:  # pyright: ignore[reportPrivateUsage]
    kinds = get_type_hints(type(config))
    texts = field_docstrings(type(config))
    for field in fields(config):
        default = getattr(config, field.name)
        shown = "" if default in ("", ()) else f" [{default}]"
        options: dict[str, Any] = {
            "default": default,
            "help": (texts.get(field.name, "") + shown).replace("%", "%%"),
        }
        if kinds[field.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kinds[field.name] == NAMES:
            options |= {"action": "append", "default": list(default), "metavar": METAVARS[str]}
        else:
            options |= {"type": kinds[field.name], "metavar": METAVARS[kinds[field.name]]}
        group.add_argument(f"--{field.name.replace('_', '-')}", **options)


def field_docstrings(cls: type) -> dict[str, str]:
    """The string under each field of a class, by field name, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(after.value.value).split())
    return texts
