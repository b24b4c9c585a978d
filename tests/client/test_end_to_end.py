"""The client on the real server, in this process: the four verbs, saving, and bad input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinkerlite
from tinkerlite import errors
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams, TensorData

STEP = AdamParams(learning_rate=1e-2)
TEXT = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
PROMPT = ModelInput.from_ints(TEXT[:6])


def datum(tokens: list[int] | None = None) -> Datum:
    """One sequence, already shifted, with all of its tokens weighing 1."""
    ids = TEXT if tokens is None else tokens
    return Datum(
        ModelInput.from_ints(ids[:-1]), {"target_tokens": ids[1:], "weights": [1.0] * (len(ids) - 1)}
    )


@pytest.fixture
def service(local_service: tinkerlite.ServiceClient) -> tinkerlite.ServiceClient:
    return local_service


@pytest.fixture
def training(service: tinkerlite.ServiceClient, student_folder: Path) -> tinkerlite.TrainingClient:
    return service.create_lora_training_client(str(student_folder), rank=4, seed=0)


@pytest.fixture
def sampler(service: tinkerlite.ServiceClient, student_folder: Path) -> tinkerlite.SamplingClient:
    return service.create_sampling_client(base_model=str(student_folder))


# ---- sampling and scoring ----


def test_a_seed_draws_the_same_again_and_its_samples_differ(sampler: tinkerlite.SamplingClient):
    params = SamplingParams(max_tokens=8, seed=3, stop=[], temperature=2.0)
    once, again = (sampler.sample(PROMPT, 3, params).result() for _ in range(2))
    drawn = [sequence.tokens for sequence in once.sequences]
    assert drawn == [sequence.tokens for sequence in again.sequences]
    assert len({tuple(tokens) for tokens in drawn}) == 3
    assert [len(tokens) for tokens in drawn] == [8, 8, 8]


def test_sampled_logprobs_are_those_of_scoring_and_of_the_trainer(
    training: tinkerlite.TrainingClient,
):
    training.forward_backward([datum()], "cross_entropy")
    training.optim_step(STEP)
    sampler = training.save_weights_and_get_sampling_client()
    drawn = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=8, stop=[], temperature=0.7)).result()
    completion = drawn.sequences[0]
    whole = TEXT[:6] + completion.tokens
    scored = sampler.compute_logprobs(ModelInput.from_ints(whole)).result()
    trained = training.forward([datum(whole)], "cross_entropy").result()
    assert scored[0] is None
    np.testing.assert_allclose(completion.logprobs_np, np.asarray(scored[6:], np.float32), atol=1e-4)
    np.testing.assert_allclose(
        completion.logprobs_np, trained.loss_fn_outputs[0]["logprobs"].to_numpy()[5:], atol=1e-4
    )


def test_topk_holds_the_likeliest_tokens_first(sampler: tinkerlite.SamplingClient):
    greedy = SamplingParams(max_tokens=3, temperature=0, stop=[])
    response = sampler.sample(
        PROMPT, 1, greedy, include_prompt_logprobs=True, topk_prompt_logprobs=2, topk_sample_logprobs=2
    ).result()
    rows = response.sequences[0].topk_logprobs
    assert rows is not None
    assert [row[0][0] for row in rows if row] == response.sequences[0].tokens
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[0] is None
    assert all(row and row[0][1] >= row[1][1] for row in response.topk_prompt_logprobs[1:])


def test_tokens_named_along_the_prompt_are_scored_in_the_layout_that_names_them(
    sampler: tinkerlite.SamplingClient,
):
    ids = np.full((5, 3), -1)
    ids[:, 0], ids[2, 2] = TEXT[1:6], 7
    scored = sampler.compute_logprobs(PROMPT).result()[1:]
    for targets in (TensorData(ids), TensorData(ids).to_csr(pad_value=-1)):
        response = sampler.sample(
            PROMPT, 1, SamplingParams(max_tokens=1), target_prompt_logprobs=targets
        ).result()
        answer = response.target_prompt_logprobs
        assert answer is not None
        assert (answer.is_sparse, answer.shape) == (targets.is_sparse, [5, 3])
        logprobs = answer.to_numpy()
        assert logprobs[:, 0].tolist() == pytest.approx(scored, abs=1e-5)
        assert logprobs[2, 2] < 0
        assert (logprobs[ids < 0] == 0).all()


def test_alternatives_to_the_prompt_are_scored_as_what_they_are(sampler: tinkerlite.SamplingClient):
    params = SamplingParams(max_tokens=1, seed=5, temperature=1.5)
    first, again = (sampler.sample(PROMPT, 1, params, prompt_alt_tokens_k=3).result() for _ in range(2))
    assert first.prompt_alt_tokens is not None
    assert first.prompt_alt_tokens.tokens == again.prompt_alt_tokens.tokens  # type: ignore[union-attr]
    assert first.prompt_alt_tokens.tokens.shape == [5, 3]
    targets = first.prompt_alt_tokens.tokens
    scored = sampler.sample(PROMPT, 1, params, target_prompt_logprobs=targets).result()
    assert scored.target_prompt_logprobs is not None
    np.testing.assert_allclose(
        scored.target_prompt_logprobs.to_numpy(), first.prompt_alt_tokens.logprobs.to_numpy(), atol=1e-5
    )


def test_more_alternatives_than_the_server_gives_are_refused_before_they_are_asked_for(
    sampler: tinkerlite.SamplingClient,
):
    with pytest.raises(errors.CapabilityError, match="at most 512 alternatives"):
        sampler.sample(PROMPT, 1, SamplingParams(), topk_prompt_logprobs=513).result()


def test_many_prompts_at_once_each_get_their_own_answer(sampler: tinkerlite.SamplingClient):
    prompts = [ModelInput.from_ints([first, *TEXT]) for first in range(40, 100)]
    together = [future.result() for future in [sampler.compute_logprobs(prompt) for prompt in prompts]]
    alone = [sampler.compute_logprobs(prompt).result() for prompt in prompts[::20]]
    np.testing.assert_allclose(
        np.asarray(together[::20], dtype=np.float64), np.asarray(alone, dtype=np.float64), atol=1e-4
    )


def test_student_and_teacher_live_in_one_server(
    service: tinkerlite.ServiceClient, sampler: tinkerlite.SamplingClient, teacher_folder: Path
):
    teacher = service.create_sampling_client(base_model=str(teacher_folder))
    ours, theirs = sampler.compute_logprobs(PROMPT).result(), teacher.compute_logprobs(PROMPT).result()
    assert ours != theirs
    assert teacher.get_base_model() == str(teacher_folder)


def test_the_tokenizer_comes_from_the_server(
    service: tinkerlite.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student_folder: Path
):
    monkeypatch.setenv("TINKERLITE_CACHE_DIR", str(tmp_path))
    tokenizer = service.create_sampling_client(base_model=str(student_folder)).get_tokenizer()
    text = "The capital of France, in 2 words: 東京 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert Path(tokenizer.name_or_path).is_relative_to(tmp_path)


# ---- training ----


def losses(training: tinkerlite.TrainingClient, steps: int) -> list[float]:
    """The loss before each of some steps; everything is sent before anything is waited for."""
    updates = []
    for _ in range(steps):
        updates.append(training.forward_backward([datum()], "cross_entropy"))
        training.optim_step(STEP)
    return [update.result().metrics["loss:sum"] for update in updates]


def test_training_lowers_the_loss(training: tinkerlite.TrainingClient):
    first, *_, last = losses(training, 6)
    assert last < first / 2


def test_pipelined_steps_are_those_that_were_waited_for_one_by_one(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient, student_folder: Path
):
    other = service.create_lora_training_client(str(student_folder), rank=4, seed=0)
    one_by_one = []
    for _ in range(4):
        one_by_one.append(other.forward_backward([datum()], "cross_entropy").result().metrics["loss:sum"])
        other.optim_step(STEP).result()
    assert losses(training, 4) == pytest.approx(one_by_one, rel=1e-5)


def test_a_batch_in_chunks_trains_as_the_whole_batch_does(
    service: tinkerlite.ServiceClient,
    training: tinkerlite.TrainingClient,
    student_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    batch = [datum(TEXT[:length]) for length in (3, 10, 5, 8, 4)]
    other = service.create_lora_training_client(str(student_folder), rank=4, seed=0)
    whole = other.forward_backward(batch, "cross_entropy").result()
    whole_norm = other.optim_step(STEP).result().metrics
    connection = service._connection
    limits = connection.server_config.model_copy(update={"fwdbwd_max_chunk_len": 2})
    monkeypatch.setattr(connection, "server_config", limits)
    chunked = training.forward_backward(batch, "cross_entropy").result()
    chunked_norm = training.optim_step(STEP).result().metrics
    assert chunked.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)
    for ours, theirs in zip(chunked.loss_fn_outputs, whole.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(ours["logprobs"].to_numpy(), theirs["logprobs"].to_numpy(), atol=1e-5)
    assert chunked_norm is not None
    assert whole_norm is not None
    assert chunked_norm["grad_norm"] == pytest.approx(whole_norm["grad_norm"], rel=1e-4)


def test_forward_leaves_no_gradients_behind(training: tinkerlite.TrainingClient):
    training.forward([datum()], "cross_entropy")
    metrics = training.optim_step(STEP).result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] == 0


def test_a_custom_loss_trains_as_the_built_in_one_that_it_spells_out(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient, student_folder: Path
):
    def cross_entropy(
        data: list[Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        terms = [
            (item.loss_fn_inputs["weights"].to_torch() * lp).sum()
            for item, lp in zip(data, logprobs, strict=True)
        ]
        return -torch.stack(terms).sum(), {"datums:sum": len(data)}

    other = service.create_lora_training_client(str(student_folder), rank=4, seed=0)
    custom = training.forward_backward_custom([datum(), datum(TEXT[:5])], cross_entropy)
    built_in = other.forward_backward([datum(), datum(TEXT[:5])], "cross_entropy")
    ours, theirs = training.optim_step(STEP).result().metrics, other.optim_step(STEP).result().metrics
    assert custom.result().metrics["loss:sum"] == pytest.approx(
        built_in.result().metrics["loss:sum"], rel=1e-5
    )
    assert custom.result().metrics["datums:sum"] == 2
    assert ours is not None
    assert theirs is not None
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


# ---- saving and loading ----


def test_with_its_optimizer_a_saved_run_goes_on_as_if_it_had_never_stopped(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient
):
    losses(training, 3)
    path = training.save_state("halfway").result().path
    went_on = losses(training, 3)
    resumed = service.create_training_client_from_state_with_optimizer(path)
    restarted = service.create_training_client_from_state(path)
    assert losses(resumed, 3) == pytest.approx(went_on, rel=1e-4)
    cold = losses(restarted, 3)
    assert cold[0] == pytest.approx(went_on[0], rel=1e-4), "the weights are the same"
    assert cold[1:] != pytest.approx(went_on[1:], rel=1e-4), "the moments are not"


def test_a_run_can_be_set_back_to_what_it_saved(training: tinkerlite.TrainingClient):
    losses(training, 1)
    path = training.save_state("early").result().path
    went_on = losses(training, 2)
    training.load_state_with_optimizer(path).result()
    assert losses(training, 2) == pytest.approx(went_on, rel=1e-4)


def test_a_sampler_keeps_the_weights_that_it_was_made_from(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient
):
    snapshot = training.save_weights_and_get_sampling_client()
    saved = training.save_weights_for_sampler("step-0").result().path
    assert saved is not None
    before = snapshot.compute_logprobs(PROMPT).result()
    losses(training, 2)
    after = training.save_weights_and_get_sampling_client().compute_logprobs(PROMPT).result()
    assert snapshot.compute_logprobs(PROMPT).result() == before != after
    loaded = service.create_sampling_client(model_path=saved)
    np.testing.assert_allclose(loaded.compute_logprobs(PROMPT).result()[1:], before[1:], atol=1e-5)
    assert loaded.get_base_model() == snapshot.get_base_model()


def test_what_the_server_keeps_can_be_listed_and_tidied_up(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient, student_folder: Path
):
    rest = service.create_rest_client()
    path = training.save_state("kept", ttl_seconds=3600, user_metadata={"step": "0"}).result().path
    [checkpoint] = rest.list_checkpoints(training.model_id).result().checkpoints
    assert (checkpoint.tinker_path, checkpoint.checkpoint_type) == (path, "training")
    assert checkpoint.expires_at is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert rest.list_checkpoints(training.model_id).result().checkpoints[0].expires_at is None
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank) == (str(student_folder), 4)
    run = rest.get_training_run_by_tinker_path(path).result()
    assert (run.training_run_id, run.base_model) == (training.model_id, str(student_folder))
    assert training.model_id in rest.get_session(service.session_id).result().training_run_ids
    assert service.session_id in rest.list_sessions(limit=1000).result().sessions
    assert rest.list_training_runs(limit=1).result().cursor.total_count >= 1
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(training.model_id).result().checkpoints == []
    assert path not in {each.tinker_path for each in rest.list_user_checkpoints().result().checkpoints}


def test_what_a_run_trains_can_be_asked(
    service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient, student_folder: Path
):
    info = training.get_info()
    assert (info.model_id, info.lora_rank, info.model_data.model_name) == (
        training.model_id,
        4,
        str(student_folder),
    )
    offered = {model.model_name: model for model in service.get_server_capabilities().supported_models}
    assert offered[str(student_folder)].vocab_size == 512
    assert "cross_entropy" in (offered[str(student_folder)].losses or [])


# ---- the spellings of the tinker SDK ----


def test_a_loop_written_for_the_tinker_sdk_runs(service: tinkerlite.ServiceClient, student_folder: Path):
    async def loop() -> tuple[float, int]:
        name = str(student_folder)
        training = await service.create_lora_training_client_async(base_model=name, rank=4)
        training = await service.create_lora_training_client(base_model=name, rank=4)
        update = await training.forward_backward_async([datum()], "cross_entropy")
        step = await training.optim_step_async(AdamParams(learning_rate=1e-3))
        output = await update.result_async()
        await step
        sampler = await training.save_weights_and_get_sampling_client_async(name="x")
        response = await sampler.sample_async(
            prompt=PROMPT, num_samples=2, sampling_params=SamplingParams(max_tokens=2)
        )
        assert len(await sampler.compute_logprobs_async(PROMPT)) == 6
        return output.metrics["loss:sum"], len(response.sequences)

    loss, samples = asyncio.run(loop())
    assert loss > 0
    assert samples == 2


def test_clients_may_be_taken_for_futures_of_themselves(
    service: tinkerlite.ServiceClient, student_folder: Path
):
    client = service.create_sampling_client(base_model=str(student_folder))
    assert client.result() is client


def test_twins_are_named_and_documented():
    twin = tinkerlite.TrainingClient.forward_async
    assert twin.__name__ == "forward_async"
    assert "forward" in (twin.__doc__ or "")


# ---- bad input, through the whole stack ----


def test_a_token_outside_of_the_vocabulary_is_refused_by_place(training: tinkerlite.TrainingClient):
    with pytest.raises((errors.BadRequestError, errors.RequestFailedError), match=r"data\[1\]"):
        training.forward_backward([datum(), datum([40, 41, 9999])], "cross_entropy").result()
    assert losses(training, 1)[0] > 0, "the run goes on"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda run: run.forward_backward([datum()], "no_such_loss"), "no_such_loss"),
        (lambda run: run.forward_backward([datum()], "cross_entropy", {"beta": 1.0}), "beta"),
        (lambda run: run.forward_backward([datum([40] * 2000)], "cross_entropy"), "2000|1999|long|context"),
        (lambda run: run.load_state("tinker://nobody:train:0/weights/x"), "nobody"),
    ],
)
def test_what_only_the_server_can_know_is_refused_with_its_reason(
    training: tinkerlite.TrainingClient, call: Any, complaint: str
):
    with pytest.raises((errors.APIStatusError, errors.RequestFailedError), match=complaint):
        call(training).result()
    assert losses(training, 1)[0] > 0, "the run goes on"


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda run: run.forward_backward([], "cross_entropy"), errors.InvalidRequest),
        (lambda run: run.forward_backward([datum([40, 41, -1])], "cross_entropy"), errors.InvalidDatum),
        (lambda run: run.optim_step(), errors.InvalidRequest),
        (lambda run: run.save_state("a/b"), errors.InvalidRequest),
        (lambda run: run.load_state("weights/x"), errors.InvalidRequest),
    ],
)
def test_what_the_client_can_know_is_refused_at_once(
    training: tinkerlite.TrainingClient, call: Any, kind: type[Exception]
):
    with pytest.raises(kind):
        call(training)


@pytest.mark.parametrize(
    "make",
    [
        lambda service: service.create_lora_training_client("no/such-model"),
        lambda service: service.create_sampling_client(base_model="no/such-model"),
        lambda service: service.create_sampling_client(
            model_path="tinker://nobody:train:0/sampler_weights/x"
        ),
        lambda service: service.create_training_client_from_state("tinker://nobody:train:0/weights/x"),
    ],
)
def test_what_the_server_does_not_have_is_not_found(service: tinkerlite.ServiceClient, make: Any):
    with pytest.raises((errors.NotFoundError, errors.BadRequestError, errors.RequestFailedError), match="no"):
        make(service)


@pytest.mark.parametrize(
    "make",
    [
        lambda service: service.create_lora_training_client("x", rank=0),
        lambda service: service.create_lora_training_client(
            "x", train_mlp=False, train_attn=False, train_unembed=False
        ),
        lambda service: service.create_sampling_client(),
    ],
)
def test_what_makes_no_client_is_refused_at_once(service: tinkerlite.ServiceClient, make: Any):
    with pytest.raises(errors.InvalidRequest):
        make(service)


@pytest.mark.parametrize(
    ("prompt", "num_samples", "kind"),
    [
        (ModelInput.empty(), 1, errors.InvalidInput),
        (PROMPT, 0, errors.InvalidRequest),
        (ModelInput.from_ints([9999]), 1, (errors.BadRequestError, errors.RequestFailedError)),
        (ModelInput.from_ints([40] * 5000), 1, (errors.BadRequestError, errors.RequestFailedError)),
    ],
)
def test_a_prompt_that_cannot_be_sampled_from_is_refused(
    sampler: tinkerlite.SamplingClient, prompt: ModelInput, num_samples: int, kind: Any
):
    with pytest.raises(kind):
        sampler.sample(prompt, num_samples, SamplingParams(max_tokens=1)).result()


# ---- a server in this process ----


def test_clients_of_the_same_models_share_one_server(
    service: tinkerlite.ServiceClient,
    training: tinkerlite.TrainingClient,
    student_folder: Path,
    teacher_folder: Path,
):
    path = training.save_weights_for_sampler("shared").result().path
    with tinkerlite.ServiceClient(base_url=f"local://{student_folder},{teacher_folder}") as other:
        assert len(other.create_sampling_client(model_path=path).compute_logprobs(PROMPT).result()) == 6
    assert training.get_info().model_id == training.model_id, "the first client's server is still there"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(Exception, match=str(tmp_path)):
        tinkerlite.ServiceClient(base_url=f"local://{tmp_path}")


def test_a_process_with_a_server_in_it_exits_in_the_middle_of_its_work(student_folder: Path):
    script = f"""
import tinkerlite
service = tinkerlite.ServiceClient(base_url="local://{student_folder}")
sampler = service.create_sampling_client(base_model="{student_folder}")
prompt = tinkerlite.ModelInput.from_ints([1, 2, 3])
sampler.compute_logprobs(prompt).result()
for _ in range(50):
    sampler.sample(prompt, 8, tinkerlite.SamplingParams(max_tokens=400, stop=[]))
print("leaving", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
