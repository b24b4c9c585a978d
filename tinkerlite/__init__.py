"""Client SDK of the Tinker protocol: sample, compute_logprobs, forward_backward, optim_step.

    import tinkerlite
    from tinkerlite import types

    service = tinkerlite.ServiceClient(base_url="local://HuggingFaceTB/SmolLM2-135M-Instruct")

Public names load on first use, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinkerlite import errors as errors
    from tinkerlite import types as types
    from tinkerlite.config import ClientConfig as ClientConfig
    from tinkerlite.custom_loss import NumpyLoss as NumpyLoss
    from tinkerlite.errors import APIConnectionError as APIConnectionError
    from tinkerlite.errors import APIError as APIError
    from tinkerlite.errors import APIResponseValidationError as APIResponseValidationError
    from tinkerlite.errors import APIStatusError as APIStatusError
    from tinkerlite.errors import APITimeoutError as APITimeoutError
    from tinkerlite.errors import AuthenticationError as AuthenticationError
    from tinkerlite.errors import BadRequestError as BadRequestError
    from tinkerlite.errors import BillingError as BillingError
    from tinkerlite.errors import CapabilityError as CapabilityError
    from tinkerlite.errors import ClientClosedError as ClientClosedError
    from tinkerlite.errors import ConflictError as ConflictError
    from tinkerlite.errors import InternalServerError as InternalServerError
    from tinkerlite.errors import InvalidDatum as InvalidDatum
    from tinkerlite.errors import InvalidInput as InvalidInput
    from tinkerlite.errors import InvalidRequest as InvalidRequest
    from tinkerlite.errors import InvalidTensor as InvalidTensor
    from tinkerlite.errors import NotFoundError as NotFoundError
    from tinkerlite.errors import NotSubmittedError as NotSubmittedError
    from tinkerlite.errors import PermissionDeniedError as PermissionDeniedError
    from tinkerlite.errors import RateLimitError as RateLimitError
    from tinkerlite.errors import RequestFailedError as RequestFailedError
    from tinkerlite.errors import ResultGoneError as ResultGoneError
    from tinkerlite.errors import StuckRequestError as StuckRequestError
    from tinkerlite.errors import TinkerError as TinkerError
    from tinkerlite.errors import UnprocessableEntityError as UnprocessableEntityError
    from tinkerlite.future import APIFuture as APIFuture
    from tinkerlite.notebook import show as show
    from tinkerlite.rest_client import RestClient as RestClient
    from tinkerlite.sampling_client import SamplingClient as SamplingClient
    from tinkerlite.service_client import ServiceClient as ServiceClient
    from tinkerlite.training_client import TrainingClient as TrainingClient
    from tinkerlite.types import AdamOptimizerConfig as AdamOptimizerConfig
    from tinkerlite.types import AdamParams as AdamParams
    from tinkerlite.types import Checkpoint as Checkpoint
    from tinkerlite.types import CheckpointType as CheckpointType
    from tinkerlite.types import Datum as Datum
    from tinkerlite.types import DimuonOptimizerConfig as DimuonOptimizerConfig
    from tinkerlite.types import DimuonParams as DimuonParams
    from tinkerlite.types import DmelChunk as DmelChunk
    from tinkerlite.types import EncodedTextChunk as EncodedTextChunk
    from tinkerlite.types import ForwardBackwardOutput as ForwardBackwardOutput
    from tinkerlite.types import ImageAssetPointerChunk as ImageAssetPointerChunk
    from tinkerlite.types import ImageChunk as ImageChunk
    from tinkerlite.types import LoraConfig as LoraConfig
    from tinkerlite.types import ModelID as ModelID
    from tinkerlite.types import ModelInput as ModelInput
    from tinkerlite.types import ModelInputChunk as ModelInputChunk
    from tinkerlite.types import OptimizerConfig as OptimizerConfig
    from tinkerlite.types import OptimParams as OptimParams
    from tinkerlite.types import OptimStepResponse as OptimStepResponse
    from tinkerlite.types import ParsedCheckpointTinkerPath as ParsedCheckpointTinkerPath
    from tinkerlite.types import PromptProvenanceSpan as PromptProvenanceSpan
    from tinkerlite.types import SampledProvenanceSpan as SampledProvenanceSpan
    from tinkerlite.types import SampledSequence as SampledSequence
    from tinkerlite.types import SampleResponse as SampleResponse
    from tinkerlite.types import SamplingParams as SamplingParams
    from tinkerlite.types import StopReason as StopReason
    from tinkerlite.types import TensorData as TensorData
    from tinkerlite.types import TensorDtype as TensorDtype
    from tinkerlite.types import TrainingRun as TrainingRun

_HOMES = {
    "tinkerlite": ("errors", "types"),
    "tinkerlite.config": ("ClientConfig",),
    "tinkerlite.custom_loss": ("NumpyLoss",),
    "tinkerlite.future": ("APIFuture",),
    "tinkerlite.notebook": ("show",),
    "tinkerlite.rest_client": ("RestClient",),
    "tinkerlite.sampling_client": ("SamplingClient",),
    "tinkerlite.service_client": ("ServiceClient",),
    "tinkerlite.training_client": ("TrainingClient",),
    "tinkerlite.errors": (
        "APIConnectionError",
        "APIError",
        "APIResponseValidationError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BillingError",
        "CapabilityError",
        "ClientClosedError",
        "ConflictError",
        "InternalServerError",
        "InvalidDatum",
        "InvalidInput",
        "InvalidRequest",
        "InvalidTensor",
        "NotFoundError",
        "NotSubmittedError",
        "PermissionDeniedError",
        "RateLimitError",
        "RequestFailedError",
        "ResultGoneError",
        "StuckRequestError",
        "TinkerError",
        "UnprocessableEntityError",
    ),
    "tinkerlite.types": (
        "AdamOptimizerConfig",
        "DimuonOptimizerConfig",
        "DimuonParams",
        "DmelChunk",
        "ImageAssetPointerChunk",
        "ImageChunk",
        "OptimParams",
        "OptimizerConfig",
        "ParsedCheckpointTinkerPath",
        "PromptProvenanceSpan",
        "SampledProvenanceSpan",
        "AdamParams",
        "Checkpoint",
        "CheckpointType",
        "Datum",
        "EncodedTextChunk",
        "ForwardBackwardOutput",
        "LoraConfig",
        "ModelID",
        "ModelInput",
        "ModelInputChunk",
        "OptimStepResponse",
        "SampleResponse",
        "SampledSequence",
        "SamplingParams",
        "StopReason",
        "TensorData",
        "TensorDtype",
        "TrainingRun",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tinkerlite")
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'tinkerlite' has no attribute {name!r}")
    value = (
        import_module(f"tinkerlite.{name}")
        if module == "tinkerlite"
        else getattr(import_module(module), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
