"""Writes what `tinkerlite doctor` says into the README, so that no number there is typed.

    python docs/regenerate.py

Serves SmolLM2-135M-Instruct in float32 on a free port, and examines it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINKERLITE = [sys.executable, "-m", "tinkerlite.cli"]
SERVER = "http://127.0.0.1:8000"
BLOCK = re.compile(r"(<!-- doctor -->\n```\n)(.*?)(```\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Examine a server, and replace the README's block by what was said."""
    with tempfile.TemporaryDirectory() as data:
        serve = [
            *TINKERLITE,
            "serve",
            "--model",
            MODEL,
            "--dtype",
            "float32",
            "--port",
            "0",
            "--data-dir",
            data,
        ]
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert server.stdout is not None
        try:
            ready = next(
                match for line in server.stdout if (match := re.search(r"ready at (http://\S+)", line))
            )
            environment = os.environ | {"TINKERLITE_BASE_URL": ready[1]}
            doctor = [*TINKERLITE, "doctor"]
            done = subprocess.run(doctor, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.terminate()
            server.wait()
    # The port was any free one; the text names the one that a reader's server has.
    said = f"$ tinkerlite doctor\n{done.stdout.replace(ready[1], SERVER)}"
    text, count = BLOCK.subn(lambda block: f"{block[1]}{said}{block[3]}", README.read_text(encoding="utf-8"))
    assert count == 1, "the README has lost its markers"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
