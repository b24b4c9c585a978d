"""`tinkerlite run list|show`: training runs, and what they saved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tinkerlite.cli.checkpoint_table import checkpoint_table
from tinkerlite.cli.options import add_server_options, command_parser, rest_client
from tinkerlite.cli.output import cell, new_table, print_json, print_page, print_table, remark
from tinkerlite.types import TrainingRun

EXAMPLES = """\
  tinkerlite run list --limit 5
  tinkerlite run show sess-1:train:0
  tinkerlite run show tinker://sess-1:train:0/weights/final --json
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    return _show(options) if options.action == "show" else _list(options)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("run", "List training runs, or show one.", EXAMPLES)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the latest used first")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="at most N (default: 20)")
    listing.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first N")
    showing = actions.add_parser("show", help="one run and its checkpoints")
    showing.add_argument("run", metavar="RUN", help="its id, or the tinker:// path of something it saved")
    for each in (listing, showing):
        add_server_options(each)
    return parser


def _list(options: argparse.Namespace) -> int:
    with rest_client(options) as client:
        answer = client.list_training_runs(options.limit, options.offset).result()
    if options.json:
        print_json(answer)
        return 0
    table = new_table("run", "base model", "rank", "last used", "last checkpoint")
    for run in answer.training_runs:
        last = run.last_checkpoint or run.last_sampler_checkpoint
        table.add_row(
            run.training_run_id,
            run.base_model,
            cell(run.lora_rank),
            cell(run.last_request_time),
            last.checkpoint_id if last else "-",
        )
    print_page(table, options.offset, answer.cursor.total_count)
    return 0


def _show(options: argparse.Namespace) -> int:
    with rest_client(options) as client:
        ask = client.get_training_run_by_tinker_path if "://" in options.run else client.get_training_run
        run = ask(options.run).result()
        checkpoints = client.list_checkpoints(run.training_run_id).result().checkpoints
    if options.json:
        print_json({"training_run": run, "checkpoints": checkpoints})
        return 0
    _print(run)
    if checkpoints:
        print_table(checkpoint_table(checkpoints))
    else:
        remark("it has saved nothing")
    return 0


def _print(run: TrainingRun) -> None:
    table = new_table("run", run.training_run_id)
    rows = {
        "base model": run.base_model,
        "adapter": f"LoRA, rank {cell(run.lora_rank)}" if run.is_lora else "all weights",
        "owner": run.model_owner,
        "last used": cell(run.last_request_time),
        **({"state": "corrupted; start again from a checkpoint"} if run.corrupted else {}),
        **(run.user_metadata or {}),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table)
