"""What every test here needs: a server, and clients of it.

The server lets in the key of the environment, and tml-other, whose owner is someone else.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tinker

RANK = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--url", required=True, help="a server of the protocol")
    parser.addoption("--model", required=True, help="a base model of that server, small and random")


@pytest.fixture(scope="session")
def url(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--url")


@pytest.fixture(scope="session")
def base_model(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--model")


@pytest.fixture(scope="session")
def service(url: str) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=url, user_metadata={"from": "tests"}, display_name="tests") as client:
        yield client


@pytest.fixture(scope="session")
def rest(url: str) -> tinker.RestClient:
    return tinker.RestClient(base_url=url)


@pytest.fixture(scope="session")
def sampler(service: tinker.ServiceClient, base_model: str) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=base_model).result()


@pytest.fixture
def trainer(service: tinker.ServiceClient, base_model: str) -> tinker.TrainingClient:
    """A fresh run; equal seeds make equal runs."""
    return service.create_lora_training_client(base_model, rank=RANK, seed=1).result()
