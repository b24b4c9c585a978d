"""The `tinkerlite` command: finds the command that was named, runs it, and words its failure.

A command is a function that takes the arguments after its name and returns an exit status. Ours are
`main` of the modules beside this one, imported when they are named, so that `--help` costs nothing;
installed distributions add others (`serve`) through the entry point group `tinkerlite.commands`.
Knows no server.

Exit status: 0 done, 1 it failed (one line on stderr says why), 2 it was asked for wrongly, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points, version

from tinkerlite.errors import AuthenticationError, TinkerError

COMMANDS_GROUP = "tinkerlite.commands"

COMMANDS = {
    "sample": "complete a prompt, or answer a question",
    "logprobs": "show how likely each token of a text is",
    "models": "list the models that a server offers",
    "run": "list training runs, or show one",
    "checkpoint": "list, download, delete, publish or expire saved weights",
    "doctor": "examine a backend, and say in words what works",
}
"""Ours, in the order of the help, each in the module of its name."""

_ELSEWHERE = {"serve": ("run a server on this machine", "tinkerlite-server")}
"""Commands of distributions that we know, whether or not they are installed."""

EXAMPLES = """\
examples:
  tinkerlite serve --model HuggingFaceTB/SmolLM2-135M-Instruct
  tinkerlite sample --chat "What is the capital of France?"
  tinkerlite sample "Once upon" --base-url local://HuggingFaceTB/SmolLM2-135M-Instruct
  tinkerlite checkpoint list --json
  tinkerlite doctor --student NAME --teacher NAME

`tinkerlite COMMAND --help` explains a command. The server is --base-url, else TINKERLITE_BASE_URL or
TINKER_BASE_URL, else the one on this machine; the key is TINKERLITE_API_KEY or TINKER_API_KEY.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _said("interrupted", 130)
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`); Python would complain once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TinkerError, OSError) as error:
        return _said(_in_one_line(error), 1)


def _run(arguments: list[str]) -> int:
    added = {point.name: point for point in entry_points(group=COMMANDS_GROUP)}
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return import_module(f"tinkerlite.cli.{name}").main(arguments[1:])
    if name in added:
        return added[name].load()(arguments[1:])
    if name in _ELSEWHERE:
        return _said(
            f"{name} comes with {_ELSEWHERE[name][1]}; install it, from a checkout: pip install -e server", 2
        )
    parser = _parser([*_ELSEWHERE, *(name for name in added if name not in _ELSEWHERE)])
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def _parser(others: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinkerlite",
        usage="tinkerlite COMMAND ...",
        description="Post-train language models on any server that speaks the Tinker protocol.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinkerlite {version('tinkerlite')}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name in others:
        summary = _ELSEWHERE[name][0] if name in _ELSEWHERE else "added by another distribution"
        commands.add_parser(name, help=summary, add_help=False)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _said(message: str, status: int) -> int:
    print(f"tinkerlite: {message}", file=sys.stderr)
    return status


def _in_one_line(error: Exception) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    if isinstance(error, AuthenticationError):  # whose note speaks of Python
        notes = ["The key comes from --api-key, TINKERLITE_API_KEY or TINKER_API_KEY."]
    return " ".join(" ".join([str(error) or type(error).__name__, *notes]).split())
