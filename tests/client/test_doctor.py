"""`tinkerlite doctor`: on the real server, and on servers that are wrong in one way each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinkerlite
from tests.client.command import Command, Said, command
from tests.client.scripted_server import PENDING, Answer, ScriptedServer, protobuf
from tests.tiny import TEXT, make_tiny_model
from tinkerlite.doctor import Finding
from tinkerlite.doctor.findings import judge
from tinkerlite.doctor.sampling import LEAD_IN
from tinkerlite.doctor.training import Readings, after_finding, fresh_finding
from tinkerlite.types import SampledSequence, SampleResponse
from tinkerlite.wire import encode_sample_response


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many tokens as the student's, and other ones."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "foreign", seed=2, text=TEXT[::-1])


@pytest.fixture(scope="module")
def service(student_folder: Path, foreign_folder: Path) -> Iterator[tinkerlite.ServiceClient]:
    """Keeps a server alive that the commands of this module share."""
    with tinkerlite.ServiceClient(base_url=f"local://{student_folder},{foreign_folder}") as client:
        yield client


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Command:
    run = command(capsys)
    return lambda *arguments: run("doctor", *arguments)


def outcomes(said: Said) -> dict[str, str]:
    return {finding["check"]: finding["outcome"] for finding in said.json["findings"]}


def finding(said: Said, check: str) -> dict[str, Any]:
    [found] = [each for each in said.json["findings"] if each["check"] == check]
    return found


# ---- a healthy server ----


def test_a_healthy_server_passes_every_check(
    doctor: Command,
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    teacher_folder: Path,
):
    where = ("--base-url", f"local://{student_folder},{teacher_folder}")
    said = doctor(*where, "--student", str(student_folder), "--teacher", str(teacher_folder), "--json")
    assert (said.status, said.err) == (0, "")
    assert said.json["healthy"] is True
    assert outcomes(said) == dict.fromkeys(
        (
            "reachable",
            "client/config",
            "key",
            "models",
            "vocabulary",
            "dialect",
            "seed",
            "sampled logprobs",
            "prompt logprobs",
            "top-k",
            "concurrent scorings",
            "sampler and trainer, fresh",
            "sampler and trainer, after a step",
            "tidied up",
        ),
        "pass",
    )
    assert finding(said, "dialect")["measured"] == {"form": "protobuf", "sample_sequence_ids": True}
    assert finding(said, "top-k")["measured"] == {"announced": 512, "prompt": 512, "sampled": 512}
    assert finding(said, "concurrent scorings")["measured"]["scorings"] == 8
    step = finding(said, "sampler and trainer, after a step")["measured"]
    assert step["mean"] < 1e-2 < step["trainer_moved"], "the comparison is of weights that have moved"


def test_it_leaves_nothing_behind(
    doctor: Command, service: tinkerlite.ServiceClient, student_folder: Path, foreign_folder: Path
):
    rest = service.create_rest_client()
    said = doctor(
        "--base-url", f"local://{student_folder},{foreign_folder}", "--student", str(student_folder), "--json"
    )
    model_id = finding(said, "tidied up")["measured"]["model_id"]
    assert rest.list_checkpoints(model_id).result().checkpoints == []
    session_id = model_id.partition(":")[0]
    with pytest.raises(tinkerlite.APIStatusError, match="ended"):
        service.connection.wait(
            service.connection.transport.request("POST", "session_heartbeat", json={"session_id": session_id})
        )
    with pytest.raises(tinkerlite.APIStatusError):
        service.connection.wait(
            service.connection.transport.request("POST", "get_info", json={"model_id": model_id})
        )


# ---- vocabularies ----


def test_other_tokens_fail_whatever_their_number(
    doctor: Command, service: tinkerlite.ServiceClient, student_folder: Path, foreign_folder: Path
):
    where = ("--base-url", f"local://{student_folder},{foreign_folder}")
    said = doctor(*where, "--student", str(student_folder), "--teacher", str(foreign_folder), "--json")
    assert said.status == 1
    assert said.json["healthy"] is False
    assert [check for check, outcome in outcomes(said).items() if outcome == "fail"] == ["vocabulary"]
    found = finding(said, "vocabulary")
    ours = service.create_sampling_client(base_model=str(student_folder)).get_tokenizer().get_vocab()
    theirs = service.create_sampling_client(base_model=str(foreign_folder)).get_tokenizer().get_vocab()
    assert len(ours) == len(theirs)
    clashing = {number for token, number in ours.items() if theirs.get(token) != number}
    assert found["measured"]["clashing_ids"] == len(clashing) > 0
    assert "choose a teacher with the student's vocabulary" in found["advice"]


def test_without_a_teacher_it_says_which_models_could_be_one(
    doctor: Command,
    service: tinkerlite.ServiceClient,
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    teacher_folder: Path,
    foreign_folder: Path,
):
    alike = finding(
        doctor("--base-url", f"local://{student_folder},{teacher_folder}", "--json"), "vocabulary"
    )
    assert alike["outcome"] == "pass"
    assert alike["measured"]["same_vocabulary"] == [str(teacher_folder)]
    other = finding(
        doctor("--base-url", f"local://{student_folder},{foreign_folder}", "--json"), "vocabulary"
    )
    assert other["outcome"] == "warn"
    assert "no other model shares the vocabulary" in other["says"]


def test_without_hashes_the_tokenizers_themselves_are_compared(
    doctor: Command, server: ScriptedServer, student_folder: Path, teacher_folder: Path, foreign_folder: Path
):
    """As on another implementation: it offers neither hashes nor tokenizer files, and names hub ids."""
    names = [str(student_folder), str(teacher_folder), str(foreign_folder)]
    offer = {"supported_models": [{"model_name": name} for name in names]}
    for teacher, outcome in ((teacher_folder, "pass"), (foreign_folder, "fail")):
        server.script("get_server_capabilities", Answer(body=offer))
        for name in (student_folder, teacher):
            server.script(f"tokenizers/{name}", Answer(404, {"detail": "Not Found"}))
        pair = ("--student", str(student_folder), "--teacher", str(teacher))
        found = finding(doctor("--base-url", server.url, *pair, "--json"), "vocabulary")
        assert found["outcome"] == outcome, found
        assert found["measured"]["hashes"] == [None, None]


# ---- servers that are wrong in one way ----


def test_no_server(doctor: Command):
    said = doctor("--base-url", "http://127.0.0.1:9", "--json")
    assert said.status == 1
    assert outcomes(said) == {"reachable": "fail"}
    assert "check --base-url" in finding(said, "reachable")["advice"]


def test_a_wrong_key(doctor: Command, server: ScriptedServer):
    server.script("client/config", Answer(401, {"detail": "this API key is unknown"}))
    said = doctor("--base-url", server.url, "--json")
    assert said.status == 1
    assert outcomes(said) == {"reachable": "pass", "key": "fail"}
    assert "this API key is unknown" in finding(said, "key")["says"]
    assert "TINKERLITE_API_KEY" in finding(said, "key")["advice"]


def test_something_that_is_no_such_server(doctor: Command, server: ScriptedServer):
    server.script(
        "client/config", Answer(body=b"<html>welcome</html>", headers={"Content-Type": "text/html"})
    )
    said = doctor("--base-url", server.url, "--json")
    assert outcomes(said) == {"reachable": "fail"}
    assert "not as this protocol does" in finding(said, "reachable")["says"]


def test_a_server_that_only_samples_is_told_what_it_lacks(doctor: Command, server: ScriptedServer):
    """The scripted server answers every sample with the same two tokens, and scores nothing."""
    server.script("client/config", *[Answer(404, {"detail": "Not Found"})] * 3)
    said = doctor("--base-url", server.url, "--student", "tiny", "--json")
    assert said.status == 1
    assert outcomes(said) == {
        "reachable": "pass",
        "client/config": "warn",
        "key": "pass",
        "models": "warn",
        "vocabulary": "skip",
        "dialect": "warn",
        "seed": "fail",
        "sampled logprobs": "skip",
        "prompt logprobs": "fail",
        "sampler and trainer": "skip",
    }
    assert "the official SDK needs it" in finding(said, "client/config")["advice"]
    assert "sample_sequence_ids" in finding(said, "dialect")["advice"]
    assert finding(said, "seed")["says"] == "1 completions came back where 4 were asked for"
    assert "needs a teacher that scores every token" in finding(said, "prompt logprobs")["advice"]


def test_json_answers_are_a_matter_for_the_official_sdk(doctor: Command, server: ScriptedServer):
    body = {"sequences": [{"stop_reason": "stop", "tokens": [1], "logprobs": [-1.0]}]}
    server.script("result of asample-0", Answer(body=body))
    found = finding(doctor("--base-url", server.url, "--student", "tiny", "--json"), "dialect")
    assert found["outcome"] == "warn"
    assert found["measured"]["form"] == "JSON"
    assert "reads protobuf alone" in found["advice"]


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(body={"error": "out of memory", "category": "server"}),
        Answer(body={"sequences": []}),
        protobuf(b"\xff\xff\xff"),
    ],
)
def test_a_server_that_cannot_sample_is_examined_no_further(
    doctor: Command, server: ScriptedServer, trouble: Answer
):
    for number in range(8):
        server.script(f"result of asample-{number}", trouble)
    said = doctor("--base-url", server.url, "--student", "tiny", "--json")
    assert said.status == 1
    found = finding(said, "sampling")
    assert found["outcome"] == "fail"
    assert found["says"].startswith("tiny cannot be sampled from: ")
    assert said.json["findings"][-1] == found


def test_a_server_that_never_answers_is_given_up(doctor: Command, server: ScriptedServer):
    server.script("result of asample-0", *[PENDING] * 100)
    said = doctor("--base-url", server.url, "--student", "tiny", "--timeout", "0.3", "--json")
    assert said.status == 1
    assert "no progress" in finding(said, "sampling")["says"]


def scoring_server(server: ScriptedServer, scores: list[list[float]]) -> None:
    """Every sample comes with prompt logprobs of 9 tokens: the lead-in, and one of two sampled.

    The n-th request gets the n-th scores, and later ones the last. Those from the second to the fifth
    ask for four completions, the others for one.
    """
    assert len(LEAD_IN) + 1 == 9
    tokens = SampledSequence("stop", np.array([1, 2], np.int32), np.array([-0.5, -0.5], np.float32))
    for number in range(60):
        given = np.array([math.nan, *scores[min(number, len(scores) - 1)]], np.float32)
        response = SampleResponse([tokens] * (4 if 1 <= number <= 4 else 1), prompt_logprobs_np=given)
        server.script(f"result of asample-{number}", protobuf(encode_sample_response(response)))


def test_replicas_that_disagree_are_found_out(doctor: Command, server: ScriptedServer):
    scoring_server(server, [[-1.0 - 0.5 * (number % 2)] * 8 for number in range(60)])
    said = doctor("--base-url", server.url, "--student", "tiny", "--scorings", "4", "--json")
    found = finding(said, "concurrent scorings")
    assert found["outcome"] == "fail"
    assert found["measured"] == {"scorings": 4, "mean": 0.5, "max": 0.5}
    assert "replicas" in found["advice"]


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([0.0] * 8, "all are 0"),
        ([-1.0] * 7 + [math.nan], "1 of 8 are missing or not finite"),
        ([-1.0] * 7 + [0.5], "never positive"),
        ([-1.0] * 7, "8 came back for 9 tokens"),
    ],
)
def test_prompt_logprobs_that_are_none_are_found_out(
    doctor: Command, server: ScriptedServer, scores: list[float], complaint: str
):
    scoring_server(server, [scores])
    found = finding(doctor("--base-url", server.url, "--student", "tiny", "--json"), "prompt logprobs")
    assert found["outcome"] == "fail"
    assert complaint in found["says"]
    assert "every token of a given text" in found["advice"]


def test_training_that_changes_nothing_is_found_out(doctor: Command, server: ScriptedServer):
    """The scripted trainer's logprobs are -1 whatever happens."""
    scoring_server(server, [[-1.0] * 8])
    for number in (0, 1):
        server.script("save_weights_for_sampler", Answer(body={"request_id": f"saved-{number}"}))
        server.script(
            f"result of saved-{number}", Answer(body={"sampling_session_id": f"session:sample:{number}"})
        )
    server.script("unload_model", Answer(404, {"detail": "Not Found"}))
    said = doctor("--base-url", server.url, "--student", "tiny", "--json")
    assert finding(said, "sampler and trainer, fresh")["measured"]["max"] == 0.5, "of the sampled tokens"
    found = finding(said, "sampler and trainer, after a step")
    assert found["outcome"] == "fail"
    assert "changed nothing at all" in found["says"]
    tidied = finding(said, "tidied up")
    assert "no unload_model" in tidied["says"]
    assert server.sent("sessions/session/finish"), "the session is finished even so"


def test_a_server_that_does_not_train_is_no_failure(doctor: Command, server: ScriptedServer):
    scoring_server(server, [[-1.0] * 8])
    offer = {"supported_models": [{"model_name": "tiny", "trainable": False}]}
    server.script("get_server_capabilities", Answer(body=offer))
    found = finding(doctor("--base-url", server.url, "--json"), "sampler and trainer")
    assert (found["outcome"], found["says"]) == ("skip", "the server does not train tiny")


def test_a_refused_run_is_a_finding(doctor: Command, server: ScriptedServer):
    scoring_server(server, [[-1.0] * 8])
    server.script("create_model", Answer(400, {"detail": "lora_config.rank must be 32"}))
    said = doctor("--base-url", server.url, "--student", "tiny", "--json")
    found = finding(said, "sampler and trainer, fresh")
    assert found["outcome"] == "fail"
    assert "rank must be 32" in found["says"]
    assert "tidied up" not in outcomes(said)


# ---- judgement ----


def readings(sampler: float, trainer: float) -> Readings:
    one, two = (np.full(4, value, np.float32) for value in (sampler, trainer))
    return Readings(scored=one, trained=two, sampled=one[:2], sampled_trained=two[:2])


def test_a_sampler_with_old_weights_is_found_out():
    found = after_finding(readings(-2.0, -2.0), readings(-2.0, -1.5), "float32")
    assert (found.outcome, found.advice) == ("fail", "the sampler still has weights from before the step")
    assert found.measured == {"mean": 0.5, "max": 0.5, "trainer_moved": 0.5, "sampler_moved": 0.0}


def test_a_fresh_adapter_that_is_not_the_base_model_is_found_out():
    base = np.array([math.nan, -1.0, -1.0, -1.0, -1.0], np.float32)
    found = fresh_finding(readings(-2.0, -2.0), base, "float32")
    assert found.outcome == "fail"
    assert "should change nothing" in found.advice
    assert fresh_finding(readings(-1.0, -1.0), base, "float32").outcome == "pass"


@pytest.mark.parametrize(
    ("mean", "dtype", "outcome"),
    [
        (9e-6, "float32", "pass"),
        (2e-5, "float32", "warn"),
        (9e-3, "bfloat16", "pass"),
        (2e-2, "bfloat16", "warn"),
        (9e-3, None, "pass"),
        (0.2, "bfloat16", "fail"),
        (math.nan, "float32", "fail"),
    ],
)
def test_differences_are_judged_by_the_dtype(mean: float, dtype: str | None, outcome: str):
    assert judge(mean, dtype) == outcome


# ---- how it speaks ----


def test_it_speaks_line_by_line_and_sums_up(doctor: Command, server: ScriptedServer):
    server.script(
        "client/config", Answer(401, {"detail": "this API key is unknown, " + "or worn out, " * 10})
    )
    said = doctor("--base-url", server.url)
    assert (said.status, said.err) == (1, "")
    lines = said.out.splitlines()
    assert lines[0] == "pass  reachable: a server answers"
    assert lines[1].startswith("fail  key: POST http://127.0.0.1")
    assert lines[-3].startswith("      -> set TINKERLITE_API_KEY")
    assert lines[-1] == "1 passed, 1 failed"
    assert 80 < max(map(len, lines)) <= 100


def test_findings_are_read_one_by_one():
    found = Finding(check="x", outcome="pass", says="y")
    assert (found.advice, dict(found.measured)) == ("", {})


def test_fewer_than_two_scorings_cannot_differ(doctor: Command):
    said = doctor("--scorings", "1", "--json")
    assert (said.status, said.out) == (1, "")
    assert "scorings is 1" in said.err
