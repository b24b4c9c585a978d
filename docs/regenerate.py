"""Writes what was measured into the pages that show it, so that no number there is typed.

python docs/regenerate.py           # both blocks
python docs/regenerate.py demo      # the demo's table in recipes.md, from docs/demo-results
python docs/regenerate.py doctor    # what `tinkerlite doctor` says of a server, in the README
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
RECIPES = DOCS / "recipes.md"
DEMO_RESULTS = DOCS / "demo-results"
"""`summary.json` of `python -m cookbook.demo --seed N`, as seed-N.json."""
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINKERLITE = [sys.executable, "-m", "tinkerlite.cli"]
SERVER = "http://127.0.0.1:8000"


def main() -> None:
    """Write the blocks that the command line names, or all."""
    wanted = sys.argv[1:] or list(BLOCKS)
    for name in wanted:
        page, make = BLOCKS[name]
        write_block(page, name, make())


def block_of(page: Path, name: str) -> str:
    """What stands between a page's markers."""
    found = _pattern(name).search(page.read_text(encoding="utf-8"))
    assert found is not None, f"{page.name} has lost its markers of {name!r}"
    return found[2]


def write_block(page: Path, name: str, content: str) -> None:
    """Replace what stands between a page's markers."""
    block_of(page, name)
    text = _pattern(name).sub(lambda found: f"{found[1]}{content}{found[3]}", page.read_text("utf-8"))
    page.write_text(text, encoding="utf-8")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


# ---- the demo ----


def demo_table() -> str:
    """One row a seed."""
    rows = [
        "| seed | teacher | RL, 16 steps | OPD, 16 steps | RL at 90% of teacher | OPD at 90% | OPD: KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in sorted(DEMO_RESULTS.glob("seed-*.json")):
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rl, opd = summary["rl"], summary["opd"]
        assert rl["steps"] == opd["steps"] == 16, f"{file.name} is of another setting than the table says"
        cells = (
            file.stem.removeprefix("seed-"),
            f"{summary['teacher']['accuracy']:.1%}",
            _accuracy(rl),
            _accuracy(opd),
            _when(rl),
            _when(opd),
            f"{opd['kl_first']:.2f} to {opd['kl_last']:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _accuracy(run: Mapping[str, Any]) -> str:
    low, high = run["accuracy_interval"]
    return f"{run['accuracy']:.1%} [{100 * low:.0f}, {100 * high:.0f}]"


def _when(run: Mapping[str, Any]) -> str:
    step = run["steps_to_90_percent_of_teacher"]
    return "not reached" if step is None else f"by step {step}"


# ---- the doctor ----


def doctor() -> str:
    """What the doctor says of a fresh float32 server on a free port."""
    with tempfile.TemporaryDirectory() as data:
        options = ["--model", MODEL, "--dtype", "float32", "--port", "0", "--data-dir", data]
        server = subprocess.Popen(
            [*TINKERLITE, "serve", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert server.stdout is not None
        try:
            ready = next(
                match for line in server.stdout if (match := re.search(r"ready at (http://\S+)", line))
            )
            environment = os.environ | {"TINKERLITE_BASE_URL": ready[1]}
            command = [*TINKERLITE, "doctor"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.terminate()
            server.wait()
    # The port was any free one; the text names the one that a reader's server has.
    return f"```\n$ tinkerlite doctor\n{done.stdout.replace(ready[1], SERVER)}```\n"


BLOCKS = {"demo": (RECIPES, demo_table), "doctor": (README, doctor)}
"""Blocks by the name in their markers."""


if __name__ == "__main__":
    main()
