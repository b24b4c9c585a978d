"""What every command takes: which server, with which key, and whether to print JSON.

Knows argparse and the clients' constructors; what a command asks of them is the command's.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager

from tinkerlite.config import ClientConfig
from tinkerlite.errors import InvalidRequest
from tinkerlite.rest_client import RestClient
from tinkerlite.sampling_client import SamplingClient
from tinkerlite.service_client import ServiceClient
from tinkerlite.training_client import checked_path

PATIENCE = ClientConfig(reconnect_timeout_seconds=20.0)
"""Someone sits and waits: a server that goes away is given up sooner than by a training loop."""


def command_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser for `tinkerlite NAME`, whose help ends with examples."""
    return argparse.ArgumentParser(
        prog=f"tinkerlite {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """--base-url, --api-key and --json, in a group of their own."""
    group = parser.add_argument_group("server and output")
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="http(s)://HOST, or local://MODEL for a server in this process "
        "(else TINKERLITE_BASE_URL, TINKER_BASE_URL, or the server on this machine)",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="better kept in TINKERLITE_API_KEY or TINKER_API_KEY; servers on this machine need none",
    )
    group.add_argument("--json", action="store_true", help="print one JSON document, for scripts")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """--model, a base model or saved weights."""
    parser.add_argument(
        "--model",
        metavar="NAME|tinker://PATH",
        help="a base model, or saved weights (may be left out where the server has one model)",
    )


@contextmanager
def rest_client(options: argparse.Namespace, config: ClientConfig = PATIENCE) -> Generator[RestClient]:
    """Questions about what the server keeps; leaves no session behind."""
    client = RestClient(base_url=options.base_url, api_key=options.api_key, config=config)
    try:
        yield client
    finally:
        client.close()


def service_client(options: argparse.Namespace) -> ServiceClient:
    """A session on the server, which ends with the `with` block."""
    return ServiceClient(base_url=options.base_url, api_key=options.api_key, config=PATIENCE)


def sampler_of(service: ServiceClient, model: str | None) -> SamplingClient:
    """A sampler on a base model or on saved weights; on the only model there is when None is named.

    Raises:
        InvalidRequest: none was named, and there is not exactly one.
    """
    if model is None:
        offered = service.get_server_capabilities().supported_models
        names = [each.model_name for each in offered if each.model_name and each.sampleable is not False]
        if len(names) != 1:
            raise InvalidRequest(f"name one with --model: the server offers {', '.join(names) or 'none'}")
        return service.create_sampling_client(base_model=names[0])
    if "://" in model:
        return service.create_sampling_client(model_path=checked_path(model))
    return service.create_sampling_client(base_model=model)
