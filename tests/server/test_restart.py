"""What outlives the process: sessions, saved checkpoints, and sampling sessions on either."""

from __future__ import annotations

from pathlib import Path

from tests.server.served import sample_body, serving
from tests.server.toy_engine import ToyEngine


def test_after_a_restart_a_client_goes_on_from_its_last_checkpoint(tmp_path: Path):
    with serving(ToyEngine(), tmp_path) as served:
        caller = served.caller()
        session = caller.session()
        model = caller.model(session)
        caller.forward_backward(model, 1)
        caller.optim_step(model, 2)
        path = caller.save(model, 3, "step1")["path"]
        base, saved = caller.sampler(session, 0), caller.sampler(session, 1, model_path=path)
        snapshot = caller.snapshot(model, 4, 2)
        before = caller.sample(saved, prompt_logprobs=True).prompt_logprobs

    with serving(ToyEngine(), tmp_path) as served:
        caller = served.caller()
        caller.ok("/session_heartbeat", session_id=session)
        message = caller.refused("/optim_step", status=404, model_id=model, seq_id=5, adam_params={})
        assert "the server was restarted" in message
        assert path in message
        answer = caller.ok("/load_weights", session_id=session, model_seq_id=1, path=path, optimizer=True)
        assert caller.result(answer["request_id"])["model_id"] == f"{session}:train:1"
        assert caller.result(caller.optim_step(f"{session}:train:1", 1))["metrics"]["step"] == 2.0
        assert caller.sample(base).sequences
        assert caller.sample(saved, prompt_logprobs=True).prompt_logprobs == before
        assert "restarted" in caller.refused("/asample", status=404, **sample_body(snapshot))


def test_a_restart_clears_away_what_a_crash_left_half_written(tmp_path: Path):
    with serving(ToyEngine(), tmp_path) as served:
        caller = served.caller()
        path = caller.save(caller.model(), 1, "a")["path"]
    (tmp_path / "checkpoints" / ".unfinished-1").mkdir()
    (tmp_path / "checkpoints" / "never.registered").mkdir()
    with serving(ToyEngine(), tmp_path) as served:
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
        assert served.caller().ok("/weights_info", tinker_path=path)
