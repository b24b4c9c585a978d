"""The table of checkpoints, as `run show` and `checkpoint list` print it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from tinkerlite.cli.output import cell, new_table, size
from tinkerlite.types import Checkpoint


def checkpoint_table(checkpoints: Iterable[Checkpoint]) -> Table:
    """One row a checkpoint, its path in full."""
    table = new_table("checkpoint", "kind", "size", "saved", "expires", "public")
    for each in checkpoints:
        table.add_row(
            each.tinker_path,
            each.checkpoint_type,
            size(each.size_bytes),
            cell(each.time),
            cell(each.expires_at) if each.expires_at else "never",
            cell(each.public),
        )
    return table
