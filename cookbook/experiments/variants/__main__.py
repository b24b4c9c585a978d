"""Runs the experiment; `--help` says how."""

import sys

from cookbook.experiments.command import main
from cookbook.experiments.variants.experiment import EXPERIMENT

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
