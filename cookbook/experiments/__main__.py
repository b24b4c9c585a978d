"""Lists the experiments, and which of them have results; `pages` makes all tables and figures again."""

import sys

from rich.console import Console
from rich.table import Table

from cookbook.experiments import all_experiments
from cookbook.experiments.pages import NOT_RUN, RESULTS_PAGE, SHOWN_SIZES, write_pages
from cookbook.experiments.results import load_results


def main(arguments: list[str]) -> int:
    """Returns an exit status."""
    if arguments not in ([], ["pages"]):
        print("usage: python -m cookbook.experiments [pages]", file=sys.stderr)
        return 2
    if arguments:
        write_pages(all_experiments())
        print(f"wrote {RESULTS_PAGE}, and the tables and figures of every experiment")
        return 0
    table = Table("", "python -m cookbook.experiments...", "what it shows", *SHOWN_SIZES)
    for experiment in all_experiments():
        counts = [len(load_results(experiment, size)) for size in SHOWN_SIZES]
        seeds = [f"{count} seeds" if count else NOT_RUN for count in counts]
        table.add_row(experiment.number, experiment.name, experiment.title, *seeds)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
