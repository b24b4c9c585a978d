"""The `tinkerlite` command: `models` here, and whatever installed distributions add (`serve`).

Knows no server: commands are found through the entry point group `tinkerlite.commands`; each is a
function that takes the arguments after its name and returns an exit status.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING

from tinkerlite.errors import TinkerError

if TYPE_CHECKING:
    from tinkerlite.types import SupportedModel

COMMANDS_GROUP = "tinkerlite.commands"
_ELSEWHERE = {"serve": "tinkerlite-server"}
_SUMMARIES = {"serve": "run a server on this machine", "models": "list the models that a server offers"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    added = {point.name: point for point in entry_points(group=COMMANDS_GROUP)}
    if arguments and arguments[0] in added:
        return added[arguments[0]].load()(arguments[1:])
    if arguments and arguments[0] in _ELSEWHERE:
        print(
            f"tinkerlite {arguments[0]} comes with {_ELSEWHERE[arguments[0]]}: pip install it",
            file=sys.stderr,
        )
        return 2
    options = _parser(added).parse_args(arguments)
    if options.command is None:
        _parser(added).print_help()
        return 0
    try:
        return list_models(options.base_url, options.api_key, as_json=options.json)
    except TinkerError as error:
        print(f"tinkerlite: {error}", file=sys.stderr)
        return 1


def _parser(added: dict[str, EntryPoint]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinkerlite",
        description="Post-train language models on any server that speaks the Tinker protocol.",
    )
    parser.add_argument("--version", action="version", version=f"tinkerlite {version('tinkerlite')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in sorted(added):
        commands.add_parser(name, help=_SUMMARIES.get(name, f"from {added[name].module}"), add_help=False)
    models = commands.add_parser("models", help=_SUMMARIES["models"], description=_SUMMARIES["models"])
    models.add_argument("--base-url", help="http(s)://..., or local://MODEL; else TINKERLITE_BASE_URL")
    models.add_argument("--api-key", help="else TINKERLITE_API_KEY; servers on this machine need none")
    models.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def list_models(base_url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Print what the server offers."""
    from tinkerlite.rest_client import RestClient

    client = RestClient(base_url=base_url, api_key=api_key)
    try:
        offered = client.get_server_capabilities().result().supported_models
    finally:
        client.close()
    if as_json:
        print(json.dumps([model.model_dump(exclude_none=True) for model in offered], indent=2))
    else:
        _print_table(offered)
    return 0


def _print_table(models: Sequence[SupportedModel]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    names = Column("model", overflow="fold", min_width=20)
    table = Table(names, "context", "vocabulary", "dtype", "train", "sample", "top-k", "losses")
    for model in models:
        cells = (
            model.model_name,
            model.max_context_length,
            model.vocab_size,
            model.dtype,
            model.trainable,
            model.sampleable,
            model.max_topk,
            ", ".join(model.losses) if model.losses else None,
        )
        table.add_row(*(_cell(value) for value in cells))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
