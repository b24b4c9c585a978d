from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.server.served import Caller, sample_body, serving
from tests.server.toy_engine import ToyEngine, base_table, log_softmax
from tinkerlite.json_form import sample_from_json
from tinkerlite.wire import decode_sample_response
from tinkerlite_server.settings import Limits


def sparse(data: list[int], shape: list[int], crow: list[int], columns: list[int]) -> dict[str, object]:
    """A CSR matrix of int64 as JSON has it."""
    return {
        "data": data,
        "dtype": "int64",
        "shape": shape,
        "sparse_crow_indices": crow,
        "sparse_col_indices": columns,
    }


def test_greedy_sampling_follows_the_model(caller: Caller):
    [sequence] = caller.sample(
        caller.sampler(), prompt={"chunks": [{"tokens": [1]}, {"tokens": [2]}]}
    ).sequences
    table = base_table("toy")
    token, expected = 2, []
    for _ in range(len(sequence.tokens)):
        token = int(table[token].argmax())
        expected.append(token)
    assert sequence.tokens == expected
    assert sequence.logprobs == pytest.approx(
        [log_softmax(table)[a, b] for a, b in zip([2, *expected], expected, strict=False)]
    )


def test_scoring_gives_the_logprob_of_every_prompt_token_but_the_first(caller: Caller):
    response = caller.sample(caller.sampler(), sampling_params={"max_tokens": 1}, prompt_logprobs=True)
    full = log_softmax(base_table("toy"))
    assert response.prompt_logprobs == [None, pytest.approx(full[1, 2]), pytest.approx(full[2, 3])]
    assert len(response.sequences) == 1


def test_only_the_last_n_prompt_tokens_are_scored_when_asked_so(caller: Caller):
    response = caller.sample(
        caller.sampler(),
        sampling_params={"max_tokens": 1},
        prompt_logprobs=True,
        prompt_logprobs_last_n=1,
        topk_prompt_logprobs=2,
    )
    assert response.prompt_logprobs is not None
    assert response.topk_prompt_logprobs is not None
    assert [each is None for each in response.prompt_logprobs] == [True, True, False]
    assert [each is None for each in response.topk_prompt_logprobs] == [True, True, False]


def test_topk_logprobs_are_the_likeliest_tokens(caller: Caller):
    response = caller.sample(
        caller.sampler(),
        sampling_params={"max_tokens": 2, "stop": []},
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
    )
    full = log_softmax(base_table("toy"))
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[1] == [
        (int(token), pytest.approx(full[1, token])) for token in np.argsort(-full[1])[:3]
    ]
    assert response.sequences[0].topk_logprobs is not None
    assert [len(row or []) for row in response.sequences[0].topk_logprobs] == [2, 2]


def test_targets_are_scored_at_their_positions_in_the_layout_they_came_in(caller: Caller):
    sampler, full = caller.sampler(), log_softmax(base_table("toy"))
    dense = {"data": [5, -1, 0, 4], "dtype": "int64", "shape": [2, 2]}
    answer = caller.sample(sampler, 0, target_prompt_logprobs=dense).target_prompt_logprobs
    assert answer is not None
    assert answer.tolist() == [
        [pytest.approx(full[1, 5]), 0.0],
        [pytest.approx(full[2, 0]), pytest.approx(full[2, 4])],
    ]
    listed = sparse([5, 0, 4], [2, 9], [0, 1, 3], [8, 0, 3])
    answer = caller.sample(sampler, 1, target_prompt_logprobs=listed).target_prompt_logprobs
    assert answer is not None
    assert (answer.is_sparse, answer.dtype, answer.shape) == (True, "float32", [2, 9])
    assert answer.data == pytest.approx([full[1, 5], full[2, 0], full[2, 4]])
    assert answer.tolist()[0][:8] == [0.0] * 8


def test_alternatives_repeat_with_the_seed_and_leave_the_samples_alone(caller: Caller):
    sampler = caller.sampler()

    def draw(seq_id: int, k: int, **params: object) -> tuple[list[list[int]] | None, list[int]]:
        options = {"max_tokens": 5, "stop": [], "seed": 3, **params}
        response = caller.sample(sampler, seq_id, sampling_params=options, prompt_alt_tokens_k=k)
        alternatives = response.prompt_alt_tokens
        if alternatives is not None:
            assert alternatives.tokens.shape == alternatives.logprobs.shape == [2, k]
        return alternatives and alternatives.tokens.tolist(), response.sequences[0].tokens

    first, sampled = draw(0, 8)
    assert (first, sampled) == draw(1, 8)
    assert draw(2, 0) == (None, sampled)
    assert draw(3, 8, seed=4)[0] != first
    assert draw(4, 8, seed=None)[0] != draw(5, 8, seed=None)[0]


def test_each_sample_has_an_id_and_a_draw_of_its_own(caller: Caller):
    options = {"sampling_params": {"max_tokens": 20, "seed": 1, "stop": []}, "num_samples": 4}
    response = caller.sample(caller.sampler(), **options)
    assert len({tuple(each.tokens) for each in response.sequences}) == 4
    assert len({each.sequence_id for each in response.sequences}) == 4


def test_one_seed_draws_the_same_again_and_no_seed_does_not(caller: Caller):
    sampler = caller.sampler()

    def draw(seq_id: int, **params: object) -> list[int]:
        options = {"max_tokens": 20, "stop": [], **params}
        return caller.sample(sampler, seq_id, sampling_params=options).sequences[0].tokens

    assert draw(0, seed=1) == draw(1, seed=1) != draw(2, seed=2)
    assert draw(3) != draw(4)


def test_a_sample_sent_again_is_the_same_request(caller: Caller, toy: ToyEngine):
    sampler = caller.sampler()
    first, again = caller.submit_sample(sampler, 10**17), caller.submit_sample(sampler, 10**17)
    assert first == again
    caller.retrieve(first["request_id"])
    assert [call[0] for call in toy.calls].count("submit") == 1
    assert "other content" in caller.refused("/asample", **sample_body(sampler, 10**17, num_samples=2))


def test_samples_have_no_order_among_them(caller: Caller):
    sampler = caller.sampler()
    assert caller.sample(sampler, 5).sequences
    assert caller.sample(sampler, 0).sequences


def test_results_can_be_fetched_again(caller: Caller):
    request_id = caller.submit_sample(caller.sampler())["request_id"]
    assert caller.retrieve(request_id).content == caller.retrieve(request_id).content


def test_older_clients_get_json(caller: Caller):
    answer = caller.submit_sample(caller.sampler(), prompt_logprobs=True)
    result = caller.post("/retrieve_future", request_id=answer["request_id"]).json()
    assert result["type"] == "sample"
    assert result["prompt_logprobs"][0] is None
    assert len(result["sequences"][0]["tokens"]) == len(result["sequences"][0]["logprobs"])
    assert result["target_prompt_logprobs"] is result["prompt_alt_tokens"] is None


def test_json_answers_have_targets_and_alternatives_too(caller: Caller):
    targets = sparse([5, 4], [2, 9], [0, 1, 2], [8, 3])
    answer = caller.submit_sample(caller.sampler(), target_prompt_logprobs=targets, prompt_alt_tokens_k=2)
    request_id = answer["request_id"]
    result = caller.post("/retrieve_future", request_id=request_id).json()
    read, sent = (
        sample_from_json(result),
        decode_sample_response(caller.retrieve(answer["request_id"]).content),
    )
    assert read.target_prompt_logprobs == sent.target_prompt_logprobs
    assert read.target_prompt_logprobs is not None
    assert read.target_prompt_logprobs.is_sparse
    assert read.prompt_alt_tokens == sent.prompt_alt_tokens


def test_the_earliest_clients_name_weights_in_each_request(caller: Caller):
    session = caller.session()
    path = caller.save(caller.model(session), 1, "a")["path"]
    body = sample_body("", prompt_logprobs=True)
    del body["sampling_session_id"]
    of_session = caller.sample(caller.sampler(session), prompt_logprobs=True).prompt_logprobs
    for of in ({"base_model": "toy"}, {"model_path": path}):
        answer = caller.ok("/asample", **body, **of)
        response = decode_sample_response(caller.retrieve(answer["request_id"]).content)
        assert response.prompt_logprobs == of_session
    assert "name base_model, model_path, or both" in caller.refused("/asample", **body)
    assert "not offered here" in caller.refused("/asample", status=404, **body, base_model="nothing")


# ---- weights ----


def test_a_snapshot_stays_as_it_was_while_training_goes_on(caller: Caller):
    model = caller.model()
    caller.forward_backward(model, 1)
    caller.optim_step(model, 2)
    sampler = caller.snapshot(model, 3, 0)
    before = caller.sample(sampler, prompt_logprobs=True).prompt_logprobs
    caller.forward_backward(model, 4)
    caller.result(caller.optim_step(model, 5))
    after = caller.sample(sampler, 1, prompt_logprobs=True).prompt_logprobs
    assert before == after
    assert before != caller.sample(caller.sampler(), prompt_logprobs=True).prompt_logprobs


def test_a_snapshot_sees_every_step_sent_before_it(caller: Caller):
    model = caller.model()
    caller.forward_backward(model, 1)
    caller.optim_step(model, 2)
    sampler = caller.snapshot(model, 3, 0)
    trained = caller.gradients(caller.forward_backward(model, 4, forward_only=True))
    scored = caller.sample(sampler, prompt_logprobs=True).prompt_logprobs
    assert scored is not None
    assert scored[1:] == trained.loss_fn_outputs[0]["logprobs"].tolist()[:2]


def test_saved_weights_sample_like_the_snapshot_of_the_same_moment(caller: Caller):
    session = caller.session()
    model = caller.model(session)
    caller.forward_backward(model, 1)
    caller.optim_step(model, 2)
    snapshot = caller.snapshot(model, 3, 0)
    answer = caller.ok("/save_weights_for_sampler", model_id=model, seq_id=4, path="a")
    path = caller.result(answer["request_id"])["path"]
    assert path == f"tinker://{model}/sampler_weights/a"
    saved = caller.sampler(session, 1, model_path=path)
    scores = [caller.sample(each, prompt_logprobs=True).prompt_logprobs for each in (snapshot, saved)]
    assert scores[0] == scores[1]


def test_a_sampling_session_keeps_its_weights_when_the_checkpoint_is_replaced_or_deleted(caller: Caller):
    session = caller.session()
    model = caller.model(session)
    path = caller.save(model, 1, "a")["path"]
    sampler = caller.sampler(session, 0, model_path=path)
    caller.forward_backward(model, 2)
    caller.optim_step(model, 3)
    caller.save(model, 4, "a", overwrite=True)
    caller.request("DELETE", f"/training_runs/{model}/checkpoints/weights/a")
    caller.server.service.sweep()
    fresh = caller.sample(caller.sampler(session, 1), prompt_logprobs=True).prompt_logprobs
    assert caller.sample(sampler, prompt_logprobs=True).prompt_logprobs == fresh


def test_saved_weights_come_back_after_others_took_their_place_in_memory(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(loaded_adapters=1)) as served:
        caller = served.caller()
        session = caller.session()
        model = caller.model(session)
        paths = [caller.save(model, seq, f"step{seq}")["path"] for seq in (1, 2)]
        samplers = [caller.sampler(session, n, model_path=path) for n, path in enumerate(paths)]
        for seq_id in range(2):
            for sampler in samplers:
                assert caller.sample(sampler, seq_id).sequences
        loads = [call for call in toy.calls if call[0] == "load_adapter"]
        assert len(loads) == 4


def test_weights_for_which_there_is_no_room_take_that_of_saved_ones_and_then_of_their_own_runs_oldest(
    caller: Caller, toy: ToyEngine
):
    session = caller.session()
    mine, others = caller.model(session, 0), caller.model(session, 1)
    saved = caller.sampler(session, 0, model_path=caller.save(mine, 1, "a")["path"])
    theirs, first = caller.snapshot(others, 1, 1), caller.snapshot(mine, 2, 2)
    assert caller.sample(saved).sequences
    toy.most_adapters = 3
    second = caller.snapshot(mine, 3, 3)  # in place of the saved weights
    third = caller.snapshot(mine, 4, 4)  # in place of the first
    for sampler in (theirs, second, third):
        assert caller.sample(sampler).sequences
    gone = caller.refused("/asample", status=404, **sample_body(first))
    assert "the run has since handed over newer weights" in gone
    # Saved weights do not take the place of snapshots, which could not come back.
    refused = caller.submit_sample(saved, 1)["request_id"]
    assert caller.failure(refused) == ("3 adapters are there", "user")
    third_run = caller.model(session, 2)
    answer = caller.ok("/save_weights_for_sampler", model_id=third_run, seq_id=1, sampling_session_seq_id=5)
    assert caller.failure(answer["request_id"]) == ("3 adapters are there", "user")


def test_a_sampler_says_what_it_samples_from(caller: Caller):
    session = caller.session()
    path = caller.save(caller.model(session), 1, "a")["path"]
    base, saved = caller.sampler(session, 0), caller.sampler(session, 1, model_path=path, base_model="toy")
    assert caller.get(f"/samplers/{base}").json() == {
        "sampler_id": base,
        "base_model": "toy",
        "model_path": None,
    }
    assert caller.get(f"/samplers/{saved}").json()["model_path"] == path


def test_a_sampling_session_asked_for_again_is_the_same(caller: Caller):
    session = caller.session()
    assert caller.sampler(session, 0) == caller.sampler(session, 0) == f"{session}:sample:0"
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "teacher"}
    assert "other weights" in caller.refused("/create_sampling_session", **body)


# ---- refusals ----


def test_stability_info_is_refused_before_anything_is_sampled_and_says_what_to_train_with(
    lasting_caller: Caller,
):
    sampler = lasting_caller.sampler()
    message = lasting_caller.refused("/asample", **sample_body(sampler, record_stability_info=True))
    assert message.startswith("record_stability_info: the objective of stable_reinforce is not published")
    assert "loss_fn=importance_sampling" in message
    assert lasting_caller.sample(sampler, record_stability_info=False).sequences


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": {"chunks": []}}, "prompt is empty"),
        ({"prompt": {"chunks": [{"type": "image", "data": ""}]}}, "prompt.chunks[0] is of type 'image'"),
        ({"prompt": {"chunks": [{"tokens": [1, True]}]}}, "prompt.chunks.0.tokens.1"),
        ({"prompt": {"chunks": [{"tokens": [10**30]}]}}, "numbers that are no token ids"),
        ({"prompt": [1, 2]}, "prompt: Input should be a valid dictionary"),
        ({"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"max_tokens": -5}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"sampling_params": {"top_p": 0}}, "sampling_params.top_p"),
        ({"sampling_params": {"top_p": 1.5}}, "sampling_params.top_p"),
        ({"sampling_params": {"top_k": -2}}, "sampling_params.top_k"),
        ({"sampling_params": {"min_p": 0.1}}, "sampling_params.min_p: Extra inputs are not permitted"),
        ({"sampling_params": {"stop": [1, "a"]}}, "sampling_params.stop"),
        ({"num_samples": -1}, "num_samples is -1"),
        ({"seq_id": -1}, "seq_id"),
        ({"target_prompt_logprobs": [[1, 2]]}, "target_prompt_logprobs: Input should be a valid dictionary"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int8"}}, "target_prompt_logprobs.dtype"),
        (
            {"target_prompt_logprobs": {"data": [1, 2, 3], "dtype": "int64", "shape": [2, 2]}},
            "target_prompt_logprobs: 3 values do not fill shape [2, 2]",
        ),
        (
            {"target_prompt_logprobs": {"data": [], "dtype": "int64", "shape": [2**32, 2**32]}},
            "target_prompt_logprobs: 0 values do not fill shape",
        ),
        (
            {"target_prompt_logprobs": {"data": [], "dtype": "int64", "shape": [0, 2**62]}},
            "target_prompt_logprobs: [0, 4611686018427387904] is no shape of an array",
        ),
        (
            {"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [1] * 65}},
            "is no shape of an array",
        ),
        (
            {"target_prompt_logprobs": {"data": [1.5, 2, 3, 4], "dtype": "int64", "shape": [2, 2]}},
            "float values cannot become int64",
        ),
        ({"target_prompt_logprobs": sparse([1], [2, 2**70], [0, 1, 1], [0])}, "ids a row, and there are 11"),
        (
            {"target_prompt_logprobs": sparse([1], [2, 3], [0, 1, 1], [2**70])},
            "target_prompt_logprobs: not a",
        ),
        ({"target_prompt_logprobs": sparse([1], [2, 3], [0, 1], [0])}, "CSR row pointers must be 3"),
        ({"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k is -1"),
        ({"prompt_alt_tokens_k": 1.5}, "prompt_alt_tokens_k"),
    ],
)
def test_a_bad_sample_request_is_refused_with_its_field(
    lasting_caller: Caller, fields: dict[str, object], message: str
):
    assert message in lasting_caller.refused("/asample", **sample_body(lasting_caller.sampler(), **fields))


def test_unknown_fields_of_newer_clients_are_ignored(caller: Caller):
    assert caller.sample(caller.sampler(), a_field_of_next_year=1).sequences


@pytest.mark.parametrize(
    ("of", "status", "message"),
    [
        ({}, 400, "name base_model, model_path, or both"),
        ({"base_model": "nothing"}, 404, "'nothing' is not offered here; this server has ['teacher', 'toy']"),
        ({"model_path": "weights"}, 400, "tinker://RUN/KIND/NAME"),
        ({"model_path": "tinker://x/weights/y"}, 404, "there is no checkpoint"),
    ],
)
def test_a_sampling_session_on_nothing_is_refused(
    lasting_caller: Caller, of: dict[str, str], status: int, message: str
):
    body = {"session_id": lasting_caller.session(), "sampling_session_seq_id": 0, **of}
    assert message in lasting_caller.refused("/create_sampling_session", status=status, **body)


def test_a_path_and_another_base_model_do_not_go_together(caller: Caller):
    session = caller.session()
    path = caller.save(caller.model(session), 1, "a")["path"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path, "base_model": "teacher"}
    assert "fit their own base model alone" in caller.refused("/create_sampling_session", **body)


def test_sampling_without_a_session_says_that_there_is_none(caller: Caller):
    assert "there is no sampling session" in caller.refused("/asample", status=404, **sample_body("nobody"))


def test_too_many_queued_samples_are_answered_with_patience_and_not_with_an_error(
    toy: ToyEngine, tmp_path: Path
):
    with serving(toy, tmp_path, limits=Limits(max_queued_samples=1)) as served:
        caller = served.caller()
        model, sampler = caller.model(), caller.sampler()
        toy.gate.clear()
        step = caller.optim_step(model, 1)
        queued = caller.submit_sample(sampler, 0)
        response = caller.post("/asample", **sample_body(sampler, 1))
        toy.gate.set()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) == 1
        caller.result(step)
        caller.retrieve(queued["request_id"])
        assert caller.sample(sampler, 1).sequences


def test_a_cancelled_sample_fails_and_costs_no_more(caller: Caller, toy: ToyEngine):
    model, sampler = caller.model(), caller.sampler()
    toy.gate.clear()
    step = caller.optim_step(model, 1)
    request_id = caller.submit_sample(sampler)["request_id"]
    caller.ok("/cancel_future", request_id=request_id)
    toy.gate.set()
    caller.result(step)
    assert caller.failure(request_id) == ("the request was cancelled", "user")
    assert "submit" not in [call[0] for call in toy.calls]


def test_a_number_that_a_snapshot_has_is_not_the_base_models(caller: Caller):
    session = caller.session()
    caller.snapshot(caller.model(session), 1, 7)
    body = {"session_id": session, "sampling_session_seq_id": 7, "base_model": "toy"}
    assert "exists with other weights" in caller.refused("/create_sampling_session", **body)
