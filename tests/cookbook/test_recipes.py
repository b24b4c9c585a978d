"""The recipes as a user starts them, on `local://`, on a tiny random model."""

import json
import re
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from cookbook import opd, rl, sft
from cookbook.metrics import read_metrics
from tests.tiny import make_tiny_model
from tinkerlite import TinkerError

SMALL = ["--steps", "1", "--held-out", "2", "--max-tokens", "4", "--rank", "4", "--task", "number-words"]
ON_POLICY = [*SMALL, "--prompts-per-step", "2", "--group-size", "2"]


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--base-url", f"local://{folder}", "--model", str(folder), "--out", str(out), *more]


def test_supervised_fine_tuning_says_where_its_weights_are(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sft.main(arguments(tiny_folder, tmp_path, *SMALL, "--batch-size", "2"))
    printed = capsys.readouterr().out
    assert re.search(r"--start-from tinker://\S+/weights/sft", printed)
    assert re.search(r"--teacher tinker://\S+/sampler_weights/sft", printed)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("recipe", [rl, opd])
def test_on_policy_recipes_print_both_prompts_and_record_every_step(
    recipe: ModuleType, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe.main(arguments(tiny_folder, tmp_path, *ON_POLICY))
    printed = capsys.readouterr().out
    assert printed.count("<|im_start|>user\\nIn digits: ") == 2
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    # Without --teacher the teacher is the base model, which an untrained student equals.
    assert rows[0]["reverse_kl"] == pytest.approx(0.0, abs=1e-4)


def test_the_default_teacher_is_the_base_of_the_weights_that_a_student_starts_from(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKERLITE_DATA_DIR", str(tmp_path / "data"))
    other = make_tiny_model(tmp_path / "other", seed=7)
    both = ["--base-url", f"local://{tiny_folder},{other}", "--out", str(tmp_path)]
    sft.main([*both, *SMALL, "--model", str(other), "--learning-rate", "0"])
    saved = json.loads((tmp_path / "checkpoint.json").read_text())["path"]
    opd.main([*both, *ON_POLICY, "--model", str(tiny_folder), "--start-from", saved])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["reverse_kl"] == pytest.approx(0.0, abs=1e-4)
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert settings["start_from"] == saved
    assert not {"model", "rank"} & settings.keys()  # the weights', not the flags'


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--teacher-renderer", "none"], "unknown renderer 'none'; choose one of chatml, template"),
        (["--renderer", "template"], "--renderer template: the tokenizer's chat template cannot"),
    ],
)
def test_a_layout_that_there_is_not_ends_the_recipe_with_its_flag(
    tiny_folder: Path, tmp_path: Path, flags: list[str], says: str
):
    bare = tmp_path / "bare"
    copytree(tiny_folder, bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(SystemExit, match=re.escape(says)):
        opd.main(arguments(bare, tmp_path, *ON_POLICY, *flags))


def test_weights_are_saved_even_where_the_cost_of_the_run_cannot_be_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> None:
        raise TinkerError("the teacher's checkpoint has expired")

    monkeypatch.setattr("cookbook.runs._rank_of", fails)
    opd.main(arguments(tiny_folder, tmp_path, *ON_POLICY))
    printed = capsys.readouterr().out
    assert "not counted: the teacher's checkpoint has expired" in printed
    assert re.search(r"--start-from tinker://\S+/weights/opd", printed)


def test_a_teacher_s_own_layout_is_that_of_its_own_tokenizer(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    teacher = tmp_path / "teacher"
    copytree(tiny_folder, teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.chat_template = "<|im_start|>system\nBe brief.<|im_end|>\n" + tokenizer.chat_template
    tokenizer.save_pretrained(teacher)
    both = [
        "--base-url",
        f"local://{tiny_folder},{teacher}",
        "--model",
        str(tiny_folder),
        "--out",
        str(tmp_path),
    ]
    opd.main([*both, *ON_POLICY, "--teacher", str(teacher), "--teacher-renderer", "template"])
    assert capsys.readouterr().out.count("Be brief.") == 1


def test_a_run_that_a_guard_stops_ends_with_the_reason_and_keeps_its_rows(tiny_folder: Path, tmp_path: Path):
    cut = ["--max-truncated-fraction", "0", "--steps", "9"]
    with pytest.raises(SystemExit, match=r"stopped at step \d: .*cut at max_tokens=4"):
        opd.main(arguments(tiny_folder, tmp_path, *ON_POLICY, *cut))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["truncated_fraction"] > 0


@pytest.mark.parametrize("recipe", [sft, rl, opd])
def test_help_reads_the_idea_the_command_and_every_option(
    recipe: ModuleType, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        recipe.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: python -m {recipe.__name__}" in text
    for expected in ("The idea.", "The command", "What you should see.", "--base-url", "--learning-rate"):
        assert expected in text


def test_an_unknown_task_is_answered_with_those_that_exist(tiny_folder: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="unknown task 'poetry'; choose one of number-words, number-lists"):
        sft.main(arguments(tiny_folder, tmp_path, "--task", "poetry"))


def test_a_server_that_is_not_there_is_answered_with_how_to_start_one(tmp_path: Path):
    with pytest.raises(SystemExit, match="tinkerlite serve"):
        sft.main(["--base-url", "http://127.0.0.1:9", "--out", str(tmp_path)])
