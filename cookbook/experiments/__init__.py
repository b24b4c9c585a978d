"""Experiments: what the on-policy distillation post found, to be checked on this machine or at full size.

    python -m cookbook.experiments.NAME --size small --seeds 0 1 2     run one; writes its results
    python -m cookbook.experiments                                     list them
    python -m cookbook.experiments pages                               tables and figures from all results

How to add one: make a package NAME here with

    experiment.py      EXPERIMENT = Experiment(...): sizes, run, tables, bars, figure
    __main__.py        the same three lines as in every other
    README.md          claim, set-up, command, what you should see, <!-- results -->, where it differs

and it is found: the list, the results page and the tests walk the packages. `experiment.py` in this folder
says what each part must do. Everything an experiment measures goes through `bench.record(...)` into
results/SIZE-seed-N.jsonl of its package; tables, bars and figure are functions of those files alone.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from cookbook.experiments.experiment import Experiment


def all_experiments() -> list[Experiment[Any]]:
    """Every experiment that there is, by number."""
    packages = [module.name for module in iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    found = [import_module(f"{__name__}.{name}.experiment").EXPERIMENT for name in packages]
    return sorted(found, key=lambda experiment: experiment.number)
