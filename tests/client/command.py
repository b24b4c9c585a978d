"""Running the `tinkerlite` command in this process, and reading what it said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tinkerlite import cli


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @property
    def words(self) -> str:
        """Standard output, however it was wrapped."""
        return " ".join(self.out.split())


Command = Callable[..., Said]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> Said:
        capsys.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as exit_status:
            status = int(exit_status.code or 0)
        return Said(status, *capsys.readouterr())

    return run
