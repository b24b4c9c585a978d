"""`tinkerlite doctor`: what a backend can do, how exactly, and what to do about it, line by line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict

from tinkerlite.cli.options import add_server_options, command_parser
from tinkerlite.cli.output import plain_console, print_json
from tinkerlite.doctor import Finding, Outcome, examine

EXAMPLES = """\
  tinkerlite doctor
  tinkerlite doctor --student Qwen/Qwen3-4B --teacher Qwen/Qwen3-32B --base-url https://...
  tinkerlite doctor --base-url local://HuggingFaceTB/SmolLM2-135M-Instruct --json

Samples and scores some dozen tokens, and trains a small LoRA for one step, which is then unloaded. The
exit status is 1 if anything fails. Sampler and trainer are held to a mean difference of 1e-5 nats in
float32 and 1e-2 in bfloat16.
"""

WIDEST = 100
"""In characters; longer lines of prose are hard to read."""
INDENT = " " * 6

_STYLES: dict[Outcome, str] = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    findings: list[Finding] = []
    with closing(_examination(options)) as examination:
        for finding in examination:
            findings.append(finding)
            if not options.json:
                _print(finding)
    failed = [finding for finding in findings if finding.outcome == "fail"]
    if options.json:
        print_json({"healthy": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print_verdict(findings)
    return 1 if failed else 0


def _examination(options: argparse.Namespace) -> Generator[Finding]:
    return examine(
        base_url=options.base_url,
        api_key=options.api_key,
        student=options.student,
        teacher=options.teacher,
        scorings=options.scorings,
        timeout_seconds=options.timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("doctor", "Examine a backend, and say in words what works.", EXAMPLES)
    add = parser.add_argument
    add("--student", metavar="NAME", help="the base model to examine (default: the first on offer)")
    add("--teacher", metavar="NAME", help="the model that is to teach it: do they share a vocabulary?")
    add(
        "--scorings",
        type=int,
        default=8,
        metavar="N",
        help="identical scorings at once (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for each check to get anywhere; the first may load weights (default: %(default)g)",
    )
    add_server_options(parser)
    return parser


def _print(finding: Finding) -> None:
    console = plain_console()
    console.print(f"{finding.outcome:4s}", style=_STYLES[finding.outcome], end="  ")
    paragraphs = [f"{finding.check}: {finding.says}", *([f"-> {finding.advice}"] if finding.advice else [])]
    width = min(console.width, WIDEST) if console.is_terminal else WIDEST
    wrapper = textwrap.TextWrapper(width - len(INDENT), break_long_words=False, break_on_hyphens=False)
    lines = [line for paragraph in paragraphs for line in wrapper.wrap(paragraph)]
    console.print(f"\n{INDENT}".join(lines), soft_wrap=True)


def _print_verdict(findings: Sequence[Finding]) -> None:
    counts = {name: sum(each.outcome == name for each in findings) for name in _STYLES}
    named = {"pass": "passed", "warn": "to know of", "fail": "failed", "skip": "not examined"}
    print("\n" + ", ".join(f"{count} {named[name]}" for name, count in counts.items() if count))
