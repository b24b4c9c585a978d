"""`tinkerlite models`: the base models of a server, and what can be done with each."""

from __future__ import annotations

from collections.abc import Sequence

from tinkerlite.cli.options import add_server_options, command_parser, rest_client
from tinkerlite.cli.output import cell, new_table, print_json, print_table
from tinkerlite.types import SupportedModel

EXAMPLES = """\
  tinkerlite models
  tinkerlite models --base-url http://127.0.0.1:9000 --json
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = command_parser("models", "List the base models that a server offers.", EXAMPLES)
    add_server_options(parser)
    options = parser.parse_args(argv)
    with rest_client(options) as client:
        capabilities = client.get_server_capabilities().result()
    if options.json:
        print_json(capabilities)
    else:
        _print(capabilities.supported_models)
    return 0


def _print(models: Sequence[SupportedModel]) -> None:
    table = new_table("model", "context", "vocabulary", "dtype", "train", "sample", "top-k", "losses")
    for model in models:
        values = (
            model.model_name,
            model.max_context_length,
            model.vocab_size,
            model.dtype,
            model.trainable,
            model.sampleable,
            model.max_topk,
            ", ".join(model.losses) if model.losses else None,
        )
        table.add_row(*(cell(value) for value in values))
    print_table(table)
