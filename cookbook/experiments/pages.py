"""Pages from results: each experiment's README block and figure, and docs/results.md.

Everything with a number in it comes from result files; texts around it are written by hand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cookbook.experiments import all_experiments
from cookbook.experiments.experiment import Bar, Experiment, Result, Size
from cookbook.experiments.results import changed_since, check_one_setting, load_results

ROOT = Path(__file__).parent.parent.parent
RESULTS_PAGE = ROOT / "docs" / "results.md"
SHOWN_SIZES: tuple[Size, ...] = ("small", "full")
NOT_RUN = "not run yet"
DIGEST = "Results"
"""Name of the entry in a figure's metadata that says which results it was made from."""

_BLOCK = re.compile(r"(<!-- results -->\n)(.*?)(<!-- end -->)", re.DOTALL)


INTRODUCTION = """\
# Results

What the experiments of the cookbook found, next to what the on-policy distillation post (Lu et al. 2025,
doi 10.64434/tml.20251026) reports. `python -m cookbook.experiments pages` makes this page from the result
files in `cookbook/experiments/NAME/results`, and a test checks that it is up to date. ± is a 95% interval
over seeds (Student's t); a claim holds, or does not, if the whole interval says so, and is open otherwise,
as it is after a single seed. A small setting fits two CPU cores and an hour: it can agree with the post in
shape, and where it does not, the table says so."""


def write_pages(experiments: Sequence[Experiment[Any]]) -> None:
    """Figures and README blocks of these, and docs/results.md, from the committed results."""
    for experiment in experiments:
        for size in SHOWN_SIZES:
            if results := load_results(experiment, size):
                check_one_setting(results)
                write_figure(experiment, results, experiment.folder / "results")
        write_tables(experiment)
    RESULTS_PAGE.write_text(results_page(), encoding="utf-8")


def write_tables(experiment: Experiment[Any]) -> None:
    """Replace the block of results in an experiment's README."""
    page = experiment.folder / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(_BLOCK.sub(lambda m: f"{m[1]}{readme_block(experiment)}{m[3]}", text), encoding="utf-8")


def shown_block(experiment: Experiment[Any]) -> str:
    """What stands between the markers of an experiment's README now."""
    found = _BLOCK.search((experiment.folder / "README.md").read_text(encoding="utf-8"))
    assert found is not None, f"the README of {experiment.name} has lost its markers of results"
    return found[2]


def readme_block(experiment: Experiment[Any]) -> str:
    """What we saw: tables, bars and figure of every size that has results."""
    return _measured(experiment, figure="figure-{size}.png") + "\n"


def write_figure(experiment: Experiment[Any], results: Sequence[Result], out: Path) -> Path:
    """Draw the figure of one size; that of committed results goes beside the README."""
    size = results[0].header["size"]
    path = (experiment.folder if out == experiment.folder / "results" else out) / f"figure-{size}.png"
    drawing: Any = experiment.figure(results)
    drawing.savefig(path, dpi=120, bbox_inches="tight", metadata={DIGEST: digest(results)})
    return path


def digest(results: Sequence[Result]) -> str:
    """SHA-256 of the results, which a figure made from them carries."""
    return hashlib.sha256(repr([(r.seed, r.header, r.rows) for r in results]).encode()).hexdigest()


def results_page() -> str:
    """docs/results.md as it should be."""
    experiments = all_experiments()
    parts = [
        INTRODUCTION,
        _overview(experiments),
        *(_section(experiment) for experiment in experiments),
    ]
    return "\n\n".join(parts) + "\n"


def _overview(experiments: Sequence[Experiment[Any]]) -> str:
    lines = ["| | claim | measured, small | |", "|---|---|---|---|"]
    for experiment in experiments:
        results = load_results(experiment, "small")
        link = f"[{experiment.number}](#{_anchor(experiment)})"
        if not results:
            lines.append(f"| {link} | {experiment.title} | {NOT_RUN} | |")
            continue
        for bar in experiment.bars(results):
            cells = (link, bar.claim, bar.measured, _verdict(bar))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(experiment: Experiment[Any]) -> str:
    readme = f"../cookbook/experiments/{experiment.name}"
    return "\n\n".join(
        [
            f"## {_heading(experiment)}",
            f"{experiment.claim} ([set-up and commands]({readme}/README.md))",
            _measured(experiment, figure=f"{readme}/figure-{{size}}.png"),
        ]
    )


def _measured(experiment: Experiment[Any], figure: str) -> str:
    parts: list[str] = []
    for size in SHOWN_SIZES:
        if size not in experiment.sizes:
            continue
        results = load_results(experiment, size)
        command = f"python -m cookbook.experiments.{experiment.name} --size {size} --seeds 0 1 2"
        command += " --base-url https://..." if size == "full" else ""
        if not results:
            parts.append(f"**{size.capitalize()}**: {NOT_RUN} (`{command}`).")
            continue
        check_one_setting(results)
        changes = changed_since(experiment, results[0])
        parts += [
            f"**{size.capitalize()}**: {made_on(results)}.",
            f"Settings have changed since: {'; '.join(changes)}." if changes else "",
            experiment.tables(results).strip(),
            "\n".join(f"- {bar.claim}: {bar.measured}. {_verdict(bar)}" for bar in experiment.bars(results)),
            f"![{experiment.title}]({figure.format(size=size)})",
        ]
    return "\n\n".join(part for part in parts if part)


def made_on(results: Sequence[Result]) -> str:
    """Seeds, minutes and machine, for every machine by itself."""
    by_machine: dict[str, list[Result]] = {}
    for result in results:
        machine = ", ".join(filter(None, (result.header["hardware"], result.header.get("dtype"))))
        by_machine.setdefault(machine, []).append(result)
    return "; ".join(
        f"seed{'s' * (len(own) > 1)} {' '.join(str(result.seed) for result in own)}, "
        f"{fmean(result.header['seconds'] for result in own) / 60:.1f} minutes{' each' * (len(own) > 1)} "
        f"on {machine}{_making(own)}"
        for machine, own in by_machine.items()
    )


def _making(results: Sequence[Result]) -> str:
    """What came before all seeds, if it took a minute."""
    seconds = max(result.header.get("making_seconds", 0.0) for result in results)
    return f", after {seconds / 60:.1f} minutes for the base model" if seconds >= 60 else ""


def _verdict(bar: Bar) -> str:
    return {True: "Holds.", False: "Does not hold.", None: "Open."}[bar.holds]


def _heading(experiment: Experiment[Any]) -> str:
    return f"{experiment.number}: {experiment.title}"


def _anchor(experiment: Experiment[Any]) -> str:
    return re.sub(r"[^\w\- ]", "", _heading(experiment).lower()).replace(" ", "-")
