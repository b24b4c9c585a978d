"""Routes of sampling: sessions that fix the weights, and sample requests."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite import types
from tinkerlite.types import SamplingParams
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.operations import Sample
from tinkerlite_server.routes.dialects import Input, Tensor
from tinkerlite_server.routes.exchange import (
    Body,
    Owner,
    Served,
    digest,
    parse,
    promise,
    read_json,
    reply,
)
from tinkerlite_server.routes.session_futures import SAMPLES_PER_CLIENT, poll_group
from tinkerlite_server.sample_validation import SampleQuestion, sample_work
from tinkerlite_server.service import Service
from tinkerlite_server.tables import SamplerRow
from tinkerlite_server.validation import NO_STABLE_REINFORCE

router = APIRouter()


class CreateSamplingSession(Body):
    """Body of create_sampling_session: a base model, saved weights, or both if they agree."""

    session_id: str
    sampling_session_seq_id: int = Field(ge=0)
    base_model: str | None = None
    model_path: str | None = None


@router.post("/create_sampling_session")
async def create_sampling_session(request: Request, service: Served, owner: Owner) -> Response:
    """Fix what to sample from, under an id."""
    body = parse(CreateSamplingSession, await read_json(request))
    service.store.live_session(body.session_id, owner)
    service.saw(body.session_id)
    wanted = _sampler(body, service, owner)
    existing = service.store.find_sampler(wanted.id)
    if existing is None:
        service.store.add_sampler(wanted)
    elif _weights_of(existing) != _weights_of(wanted):
        raise BadRequest(f"sampling session {wanted.id!r} exists with other weights; count its number up")
    return reply({"sampling_session_id": wanted.id, "type": "create_sampling_session"})


def _weights_of(row: SamplerRow) -> tuple[str, str | None, bool]:
    """What tells two samplers' weights apart; unnamed snapshots, whose ids are their own, have no path."""
    return row.base_model, row.model_path, row.adapter_id is None


def _sampler(body: CreateSamplingSession, service: Service, owner: str) -> SamplerRow:
    return _weights(
        f"{body.session_id}:sample:{body.sampling_session_seq_id}",
        body.session_id,
        body.base_model,
        body.model_path,
        service,
        owner,
    )


def _weights(
    sampler_id: str,
    session_id: str,
    base_model: str | None,
    model_path: str | None,
    service: Service,
    owner: str,
) -> SamplerRow:
    """What to sample from.

    Raises:
        BadRequest: nothing was named, or two things that do not go together.
        UnknownName: there is no such thing.
    """
    sampler = SamplerRow(
        id=sampler_id,
        session_id=session_id,
        owner=owner,
        base_model=base_model or "",
        model_path=model_path,
        adapter_id=None,
        folder=None,
        ended=None,
    )
    if model_path is not None:
        checkpoint = service.store.checkpoint(model_path, owner)
        if checkpoint.kind == "external_weights":
            raise BadRequest(
                f"{model_path} was saved for use elsewhere, perhaps encrypted; what is sampled from here is "
                "saved with save_weights_for_sampler or save_state"
            )
        if base_model not in (None, checkpoint.base_model):
            raise BadRequest(
                f"base_model is {base_model!r}, and {model_path} was trained on "
                f"{checkpoint.base_model!r}; weights fit their own base model alone"
            )
        sampler.base_model = checkpoint.base_model
        sampler.adapter_id = checkpoint.id
        sampler.folder = checkpoint.folder
    elif base_model is None:
        raise BadRequest("name base_model, model_path, or both")
    service.model(sampler.base_model)
    return sampler


@router.get("/samplers/{sampler_id}")
async def get_sampler(sampler_id: str, service: Served, owner: Owner) -> Response:
    """What a sampling session samples from."""
    row = service.store.sampler(sampler_id, owner)
    return reply(
        types.GetSamplerResponse(sampler_id=row.id, base_model=row.base_model, model_path=row.model_path)
    )


class SampleBody(Body):
    """Body of asample. The earliest clients have no sampling session, and name weights in each request."""

    sampling_session_id: str | None = None
    base_model: str | None = None
    model_path: str | None = None
    seq_id: int | None = Field(default=None, ge=0, lt=2**63)
    num_samples: int = 1
    prompt: Input
    sampling_params: SamplingParams = SamplingParams()
    topk_sample_logprobs: int = 0
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: Tensor | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None


@router.post("/asample")
async def sample(request: Request, service: Served, owner: Owner) -> Response:
    """Queue a sample request; 429 while too many are queued."""
    raw = await read_json(request)
    body = parse(SampleBody, raw)
    if body.record_stability_info:
        # To ignore it would let a whole batch be sampled before the loss that needs it is refused.
        raise BadRequest(f"record_stability_info: {NO_STABLE_REINFORCE}, nor this flag")
    sampler = _sampled_from(body, service, owner)
    info = service.model(sampler.base_model)
    question = _question(body)

    def make(request_id: str) -> Sample:
        work = sample_work(
            question, info, service.settings.limits, key=request_id, adapter_id=sampler.adapter_id
        )
        session_id = sampler.session_id or None
        return Sample(owner=owner, work=work, folder=sampler.folder, session_id=session_id)

    key = group = None
    if body.sampling_session_id is not None and body.seq_id is not None:
        key = ("sample", sampler.id, body.seq_id)
        group = poll_group(sampler.id, body.seq_id // SAMPLES_PER_CLIENT)
    request_id = service.submit_sample(owner, key, digest(raw), make, group)
    # The ids depend on the request alone, so that one sent again gets the same.
    sequence_ids = [f"{request_id}:{index}" for index in range(body.num_samples)]
    return promise(request_id, sample_sequence_ids=sequence_ids)


def _sampled_from(body: SampleBody, service: Service, owner: str) -> SamplerRow:
    """The sampling session's weights, or those that the request names itself."""
    if body.sampling_session_id is None:
        return _weights("", "", body.base_model, body.model_path, service, owner)
    sampler = service.store.live_sampler(body.sampling_session_id, owner)
    service.saw(sampler.session_id)
    return sampler


def _question(body: SampleBody) -> SampleQuestion:
    targets = body.target_prompt_logprobs
    return SampleQuestion(
        prompt=body.prompt.model_input("prompt"),
        params=body.sampling_params,
        num_samples=body.num_samples,
        topk_sample_logprobs=body.topk_sample_logprobs,
        prompt_logprobs=bool(body.prompt_logprobs),
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
        target_prompt_logprobs=None if targets is None else targets.tensor_data("target_prompt_logprobs"),
        prompt_alt_tokens_k=body.prompt_alt_tokens_k,
    )
