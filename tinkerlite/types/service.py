"""JSON bodies of the protocol that are neither tensors nor samples."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinkerlite.errors import InvalidRequest
from tinkerlite.types.optimizers import AdamOptimizerConfig, OptimizerConfig

CheckpointType = Literal["training", "sampler", "external"]
CHECKPOINT_TYPES: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
"""By the kind that a checkpoint's path names."""


class Response(BaseModel):
    """Base of the answers: fields that we do not know are ignored, since servers add some."""

    # Built when first met: there are many, and a process sees few of them.
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), defer_build=True)


class SupportedModel(Response):
    """A base model that the server offers. From `vocab_size` on, the fields are this project's addition."""

    model_name: str | None = None
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    vocab_size: int | None = None
    tokenizer_hash: str | None = None
    """SHA-256 of the token-to-id map: equal hashes mean one vocabulary."""
    dtype: str | None = None
    max_topk: int | None = None
    """Most alternatives a position, in each field of a sample request that asks for some."""
    sample_features: list[str] | None = None
    """The fields of a sample request that ask for more than completions."""
    losses: list[str] | None = None


class GetServerCapabilitiesResponse(Response):
    """What the server offers."""

    supported_models: list[SupportedModel]


class ModelData(Response):
    """Names of a model's architecture, base weights and tokenizer."""

    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class GetInfoResponse(Response):
    """What a training run trains."""

    model_id: str
    model_data: ModelData
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    """This project's addition: adapters are scaled by lora_alpha / lora_rank."""
    model_name: str | None = None


class OptimStepResponse(Response):
    """Free-form figures of one optimizer step, such as the gradient norm."""

    metrics: dict[str, float] | None = None


class SaveWeightsResponse(Response):
    """Where a training checkpoint is."""

    path: str


class SaveWeightsForSamplerResponse(Response):
    """Where sampler weights are (named), or the sampling session made on them (unnamed)."""

    path: str | None = None
    sampling_session_id: str | None = None


class SaveWeightsExternalResponse(Response):
    """Where weights in Hugging Face's layout are, and how large."""

    path: str
    size_bytes: int | None = None


class LoadWeightsResponse(Response):
    """What was loaded, and into which model."""

    path: str | None = None
    model_id: str | None = None


class WeightsInfoResponse(Response):
    """What a checkpoint holds."""

    base_model: str
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool
    lora_rank: int | None = None
    lora_alpha: float | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None


class GetSamplerResponse(Response):
    """What a sampling session samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class Checkpoint(Response):
    """A saved set of weights."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class ParsedCheckpointTinkerPath(Response):
    """A checkpoint's `tinker://RUN/KIND/NAME`, taken apart."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str
    """KIND/NAME, as checkpoints are listed."""

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> ParsedCheckpointTinkerPath:
        """Take a path apart.

        Raises:
            InvalidRequest: it has another form, or names another kind of weights.
        """
        run, _, checkpoint = tinker_path.removeprefix("tinker://").partition("/")
        kind, _, name = checkpoint.partition("/")
        if not (tinker_path.startswith("tinker://") and run and kind in CHECKPOINT_TYPES and name):
            raise InvalidRequest(
                f"{tinker_path!r} is not of the form tinker://RUN/KIND/NAME, "
                f"where KIND is one of {', '.join(CHECKPOINT_TYPES)}"
            )
        if "/" in name:
            raise InvalidRequest(f"{tinker_path!r} goes on after the checkpoint's name; it has three parts")
        return cls(
            tinker_path=tinker_path,
            training_run_id=run,
            checkpoint_type=CHECKPOINT_TYPES[kind],
            checkpoint_id=checkpoint,
        )


class CheckpointArchiveUrlResponse(Response):
    """Where a tar of a checkpoint can be fetched, without a key, and until when."""

    url: str
    expires: datetime | None = None


class ExternalWeightsUrlsResponse(Response):
    """Where each file of a checkpoint can be fetched, without a key, and until when."""

    urls: dict[str, str]
    """By the file's path, relative to the checkpoint."""
    expires: datetime


class CopyWeightsResponse(Response):
    """Where a copy of a checkpoint is."""

    tinker_path: str


class WhoamiResponse(Response):
    """Whom a credential stands for."""

    user_urn: str
    org_urn: str
    email: str | None = None


class Cursor(Response):
    """Where a page of a listing stands."""

    offset: int
    limit: int
    total_count: int


class CheckpointsListResponse(Response):
    """A page of checkpoints."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(Response):
    """A training run (its id is the model id), and its newest checkpoints."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRunsResponse(Response):
    """A page of training runs."""

    training_runs: list[TrainingRun]
    cursor: Cursor


class GetSessionResponse(Response):
    """The training runs and samplers of a session."""

    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None


class ListSessionsResponse(Response):
    """A page of session ids."""

    sessions: list[str]


class ClientConfigResponse(Response):
    """What the server asks of clients. Every field has a default, so `{}` is an answer."""

    pjwt_auth_enabled: bool = False
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = Field(default=1024, ge=1)
    """Most datums in one forward_backward request."""
    fwdbwd_max_chunk_bytes_count: int = Field(default=5_000_000, ge=1)
    """Most bytes in one forward_backward request, as the client estimates them."""
    sample_max_concurrent_requests: int = Field(default=2000, ge=1)
    billing_exception_max_pause_duration_sec: float = Field(default=3600, ge=0)
    """How long a client waits for an account that cannot pay."""


class CreateSessionResponse(Response):
    """A new session, and what the server wants its user to know."""

    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class CreateSamplingSessionResponse(Response):
    """A new sampling session."""

    sampling_session_id: str


class UntypedAPIFuture(Response):
    """The receipt for accepted work."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class TokenizerFiles(Response):
    """A base model's tokenizer files by name, as text. This project's addition to the protocol."""

    model_name: str
    files: dict[str, str]
    tokenizer_hash: str


UserMetadata = dict[str, Any]
