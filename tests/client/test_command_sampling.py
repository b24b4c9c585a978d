"""`tinkerlite sample` and `tinkerlite logprobs`, on the real server in this process."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest

import tinkerlite
from tests.client.command import Command, command
from tests.client.scripted_server import Answer, ScriptedServer
from tinkerlite.cli.shading import ScoredToken, shaded, summary
from tinkerlite.cli.text import visible
from tinkerlite.types import ModelInput, SamplingParams

TEXT = "What is the capital of France?"


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Commands that find the server which `local_service` keeps alive."""
    monkeypatch.setenv("TINKERLITE_BASE_URL", f"local://{student_folder},{teacher_folder}")
    return command(capsys)


@pytest.fixture
def sampler(local_service: tinkerlite.ServiceClient, student_folder: Path) -> tinkerlite.SamplingClient:
    return local_service.create_sampling_client(base_model=str(student_folder))


@pytest.fixture
def saved(local_service: tinkerlite.ServiceClient, student_folder: Path) -> str:
    """Weights that differ from the base model's."""
    training = local_service.create_lora_training_client(str(student_folder), rank=4, seed=0)
    data = [
        tinkerlite.Datum(
            ModelInput.from_ints([40, 41, 42]), {"target_tokens": [41, 42, 43], "weights": [1.0] * 3}
        )
    ]
    training.forward_backward(data, "cross_entropy")
    training.optim_step(tinkerlite.AdamParams(learning_rate=1e-2))
    return training.save_weights_for_sampler("for-the-command").result().path or ""


# ---- sample ----


def test_sample_draws_what_the_client_draws(
    run: Command, sampler: tinkerlite.SamplingClient, student_folder: Path
):
    options = ("--model", str(student_folder), "--max-tokens", "6", "--seed", "3", "-n", "2", "--json")
    said = run("sample", TEXT, *options)
    prompt = sampler.get_tokenizer().encode(TEXT)
    drawn = sampler.sample(ModelInput.from_ints(prompt), 2, SamplingParams(max_tokens=6, seed=3)).result()
    assert (said.status, said.err) == (0, "")
    assert said.json["prompt_tokens"] == prompt
    assert [each["tokens"] for each in said.json["sequences"]] == [each.tokens for each in drawn.sequences]
    assert [each["stop_reason"] for each in said.json["sequences"]] == [
        each.stop_reason for each in drawn.sequences
    ]
    for told, known in zip(said.json["sequences"], drawn.sequences, strict=True):
        assert told["logprobs"] == pytest.approx(known.logprobs, abs=1e-4)


def test_sample_prints_the_completion_and_nothing_else(
    run: Command, sampler: tinkerlite.SamplingClient, student_folder: Path
):
    said = run("sample", TEXT, "--model", str(student_folder), "--max-tokens", "5", "--temperature", "0")
    tokenizer = sampler.get_tokenizer()
    prompt = ModelInput.from_ints(tokenizer.encode(TEXT))
    [greedy] = sampler.sample(prompt, 1, SamplingParams(max_tokens=5, temperature=0)).result().sequences
    assert said.out == tokenizer.decode(greedy.tokens, skip_special_tokens=True) + "\n"


def test_several_completions_are_numbered(run: Command, student_folder: Path):
    said = run("sample", TEXT, "--model", str(student_folder), "--max-tokens", "2", "-n", "2", "--seed", "1")
    assert said.out.startswith("[1/2]\n")
    assert "\n\n[2/2]\n" in said.out


def test_chat_lays_the_text_out_as_a_users_turn(
    run: Command, sampler: tinkerlite.SamplingClient, student_folder: Path
):
    said = run("sample", TEXT, "--model", str(student_folder), "--chat", "--max-tokens", "1", "--json")
    laid_out = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    assert sampler.get_tokenizer().decode(said.json["prompt_tokens"]) == laid_out


def test_the_prompt_can_come_from_standard_input(
    run: Command, student_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXT}\n"))
    said = run("sample", "-", "--model", str(student_folder), "--max-tokens", "1", "--json")
    assert said.json["prompt"] == TEXT, "without the line break that echo adds"


def test_top_k_of_one_is_greedy_and_a_stop_string_ends_it(run: Command, student_folder: Path):
    options = ("--model", str(student_folder), "--max-tokens", "8", "--json")
    greedy = run("sample", TEXT, *options, "--temperature", "0").json["sequences"][0]
    top = run("sample", TEXT, *options, "--top-k", "1", "--temperature", "1.5").json["sequences"][0]
    assert top["tokens"] == greedy["tokens"]
    last = greedy["text"].strip()[0]
    stopped = run("sample", TEXT, *options, "--temperature", "0", "--stop", last).json["sequences"][0]
    assert stopped["stop_reason"] == "stop"
    assert last in stopped["text"]
    assert len(stopped["tokens"]) < 8


def test_with_logprobs_each_token_has_a_line(run: Command, student_folder: Path):
    options = ("--model", str(student_folder), "--max-tokens", "3", "--seed", "1")
    [sequence] = run("sample", TEXT, *options, "--json").json["sequences"]
    lines = run("sample", TEXT, *options, "--logprobs").out.splitlines()
    assert [float(line.split()[1]) for line in lines[:-1]] == pytest.approx(sequence["logprobs"], abs=1e-3)
    assert lines[-1].startswith(f"{len(sequence['tokens'])} tokens scored: sum ")


def test_a_model_must_be_named_where_there_are_two(run: Command, student_folder: Path, teacher_folder: Path):
    said = run("sample", TEXT)
    assert (said.status, said.out) == (1, "")
    assert f"name one with --model: the server offers {student_folder}, {teacher_folder}" in said.err


def test_the_only_model_need_not_be_named(run: Command, student_folder: Path):
    where = f"local://{student_folder}"
    said = run("logprobs", TEXT, "--base-url", where, "--json")
    assert said.json["model"] == str(student_folder)


def test_a_model_that_is_not_there_is_a_line(run: Command):
    said = run("sample", TEXT, "--model", "absent", "--json")
    assert (said.status, said.out) == (1, "")
    assert "absent" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--temperature", "-1"], "--temperature"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--top-p", "2"], "--top-p"),
        (["-n", "0"], "-n"),
        (["--seed", "first"], "--seed"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error(run: Command, arguments: list[str], complaint: str):
    said = run("sample", TEXT, *arguments)
    assert (said.status, said.out) == (2, "")
    assert f"argument {complaint}" in said.err


def test_no_text_is_nothing_to_go_on_from(run: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    said = run("logprobs", "-")
    assert (said.status, said.out) == (1, "")
    assert "the text is empty" in said.err


def test_bytes_that_are_no_text_are_a_line(run: Command):
    said = run("sample", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert (said.status, said.out) == (1, "")
    assert "not UTF-8" in said.err


# ---- logprobs ----


def test_logprobs_are_those_of_the_client(
    run: Command, sampler: tinkerlite.SamplingClient, student_folder: Path
):
    told = run("logprobs", TEXT, "--model", str(student_folder), "--json").json
    tokenizer = sampler.get_tokenizer()
    ids = tokenizer.encode(TEXT)
    known = sampler.compute_logprobs(ModelInput.from_ints(ids)).result()
    assert [each["id"] for each in told["tokens"]] == ids
    assert "".join(each["text"] for each in told["tokens"]) == TEXT
    assert told["tokens"][0]["logprob"] is None
    assert [each["logprob"] for each in told["tokens"][1:]] == pytest.approx(known[1:], abs=1e-4)
    total = math.fsum(each["logprob"] for each in told["tokens"][1:])
    assert told["scored_tokens"] == len(ids) - 1
    assert told["sum"] == pytest.approx(total)
    assert told["mean"] == pytest.approx(total / (len(ids) - 1))
    assert told["perplexity"] == pytest.approx(math.exp(-told["mean"]))


def test_saved_weights_score_otherwise_than_their_base(run: Command, saved: str, student_folder: Path):
    base = run("logprobs", TEXT, "--model", str(student_folder), "--json").json
    tuned = run("logprobs", TEXT, "--model", saved, "--json").json
    assert tuned["model"] == saved
    assert abs(tuned["sum"] - base["sum"]) > 0.1


def test_a_single_token_has_no_logprob(run: Command, student_folder: Path):
    assert run("logprobs", "a", "--model", str(student_folder)).words.endswith("there is nothing to score")
    told = run("logprobs", "a", "--model", str(student_folder), "--json").json
    assert (told["scored_tokens"], told["sum"], told["perplexity"]) == (0, None, None)


def test_the_summary_by_hand():
    tokens = [ScoredToken(1, "a", None), ScoredToken(2, "b", -1.0), ScoredToken(3, "c", -3.0)]
    total = summary(tokens)
    assert str(total) == "2 tokens scored: sum -4.0000, mean -2.0000 nats, perplexity 7.389"


def test_the_less_likely_the_redder():
    tokens = [ScoredToken(i, "ab\n"[i], logprob) for i, logprob in enumerate((-0.5, -2.5, None))]
    text = shaded(tokens)
    assert text.plain == "ab⏎\n"
    reds = [int(str(span.style).split("rgb(")[1].split(",")[0]) for span in text.spans if span.style]
    assert len(reds) == 2
    assert reds[0] < reds[1]


def test_a_terminal_is_not_told_what_to_do_by_a_model():
    assert visible("\x1b[2Ja\tb\r\nc\x07") == "\ufffd[2Ja\tb\ufffd\nc\ufffd"
    assert shaded([ScoredToken(1, "\x1b[2J", -1.0)]).plain == "\ufffd[2J"


def test_a_server_without_prompt_logprobs_is_a_line(
    run: Command, server: ScriptedServer, student_folder: Path
):
    server.script(f"tokenizers/{student_folder}", Answer(404, {"detail": "no such route"}))
    said = run("logprobs", TEXT, "--model", str(student_folder), "--base-url", server.url)
    assert (said.status, said.out) == (1, "")
    assert "prompt_logprobs" in said.err
