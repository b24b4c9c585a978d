"""`tinkerlite checkpoint ...`: saved weights, listed, fetched, deleted, shared and expired."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence

from tinkerlite.cli.checkpoint_table import checkpoint_table
from tinkerlite.cli.options import add_server_options, command_parser, rest_client
from tinkerlite.cli.output import print_json, print_page
from tinkerlite.config import ClientConfig

EXAMPLES = """\
  tinkerlite checkpoint list
  tinkerlite checkpoint list --run sess-1:train:0 --json
  tinkerlite checkpoint download tinker://sess-1:train:0/sampler_weights/final --out final
  tinkerlite checkpoint ttl tinker://sess-1:train:0/weights/step-10 7d
  tinkerlite checkpoint publish tinker://sess-1:train:0/sampler_weights/final
  tinkerlite checkpoint delete tinker://sess-1:train:0/weights/step-10 --yes
"""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], int] = options.act
    return action(options)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("checkpoint", "List saved weights, and look after them.", EXAMPLES)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(
        name: str, act: Callable[[argparse.Namespace], int], summary: str, *, takes_path: bool = True
    ) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        added.set_defaults(act=act)
        if takes_path:
            added.add_argument("path", metavar="tinker://PATH", help="as `checkpoint list` shows it")
        add_server_options(added)
        return added

    listing = action("list", _list, "list checkpoints, the newest first", takes_path=False)
    listing.add_argument("--run", metavar="RUN", help="of this training run alone")
    listing.add_argument("--limit", type=int, metavar="N", help="of all runs: at most N (default: 100)")
    listing.add_argument("--offset", type=int, metavar="N", help="of all runs: leave out the first N")
    fetching = action("download", _download, "fetch a checkpoint's files into a folder")
    fetching.add_argument("--out", metavar="DIR", help="new or empty (default: the checkpoint's name)")
    deleting = action("delete", _delete, "delete a checkpoint for good")
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    action("publish", _publish, "let every user of the server load, sample from and download a checkpoint")
    action("unpublish", _unpublish, "keep a published checkpoint to oneself again")
    expiring = action("ttl", _set_ttl, "say when a checkpoint may be deleted")
    expiring.add_argument(
        "ttl", type=_ttl, metavar="SECONDS|12h|7d|none", help="counted from now; none keeps it for ever"
    )
    return parser


def _list(options: argparse.Namespace) -> int:
    paged = options.limit is not None or options.offset is not None
    if options.run and paged:
        print("tinkerlite: a run is listed whole; leave out --limit and --offset", file=sys.stderr)
        return 2
    limit, offset = 100 if options.limit is None else options.limit, options.offset or 0
    with rest_client(options) as client:
        if options.run:
            answer = client.list_checkpoints(options.run).result()
        else:
            answer = client.list_user_checkpoints(limit, offset).result()
    if options.json:
        print_json(answer)
        return 0
    total = len(answer.checkpoints) if answer.cursor is None else answer.cursor.total_count
    print_page(checkpoint_table(answer.checkpoints), offset, total)
    return 0


def _download(options: argparse.Namespace) -> int:
    folder = options.out or options.path.rsplit("/", 1)[-1]
    # A server that packs an archive first asks for more patience than someone at a prompt has.
    with rest_client(options, ClientConfig()) as client:
        written = client.download_checkpoint(options.path, folder).result()
    files = sorted(str(file.relative_to(written)) for file in written.rglob("*") if file.is_file())
    return _done(
        options,
        {"path": options.path, "folder": str(written), "files": files},
        "\n".join([f"{options.path} is in {written}", *(f"  {file}" for file in files)]),
    )


def _delete(options: argparse.Namespace) -> int:
    if not options.yes:
        if not sys.stdin.isatty():
            print("tinkerlite: nobody is here to ask whether to delete it; add --yes", file=sys.stderr)
            return 2
        print(f"Delete {options.path} for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("tinkerlite: nothing was deleted", file=sys.stderr)
            return 1
    with rest_client(options) as client:
        client.delete_checkpoint_from_tinker_path(options.path).result()
    return _done(options, {"deleted": options.path}, f"deleted {options.path}")


def _publish(options: argparse.Namespace) -> int:
    with rest_client(options) as client:
        client.publish_checkpoint_from_tinker_path(options.path).result()
    return _done(options, {"published": options.path}, f"{options.path} is public")


def _unpublish(options: argparse.Namespace) -> int:
    with rest_client(options) as client:
        client.unpublish_checkpoint_from_tinker_path(options.path).result()
    return _done(options, {"unpublished": options.path}, f"{options.path} is private")


def _set_ttl(options: argparse.Namespace) -> int:
    seconds: int | None = options.ttl
    with rest_client(options) as client:
        client.set_checkpoint_ttl_from_tinker_path(options.path, seconds).result()
    said = "is kept" if seconds is None else f"may be deleted in {seconds} s"
    return _done(options, {"path": options.path, "ttl_seconds": seconds}, f"{options.path} {said}")


def _ttl(text: str) -> int | None:
    """Seconds from `3600`, `12h` or `7d`; None from `none`."""
    if text == "none":
        return None
    match = re.fullmatch(r"([0-9]+)([smhdw]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write seconds, 12h, 7d or none")
    return int(match[1]) * _UNITS[match[2] or "s"]


def _done(options: argparse.Namespace, document: dict[str, object], said: str) -> int:
    if options.json:
        print_json(document)
    else:
        print(said)
    return 0
