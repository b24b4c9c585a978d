import io

from rich.console import Console

from cookbook.summary import print_comparison, run_figures, steps_to_accuracy, verdict

ROWS = [
    {
        "step": 0,
        "reverse_kl": 4.0,
        "accuracy": 0.0,
        "accuracy_interval": [0.0, 0.02],
        "completion_tokens": 100,
        "seconds": {"sampling": 1.0, "training": 1.0},
    },
    {"step": 1, "reverse_kl": 2.0, "completion_tokens": 60, "seconds": {"sampling": 0.5, "training": 1.5}},
    {
        "step": 2,
        "reverse_kl": 0.5,
        "accuracy": 0.8,
        "accuracy_interval": [0.7, 0.9],
        "completion_tokens": 1000,
        "seconds": {"sampling": 1.0},
    },
]


def test_run_figures_go_from_the_untrained_student_to_the_trained_one():
    figures = run_figures(ROWS, teacher_accuracy=0.85)
    assert (figures["kl_first"], figures["kl_last"]) == (4.0, 0.5)
    assert (figures["accuracy"], figures["accuracy_interval"]) == (0.8, [0.7, 0.9])
    assert figures["steps"] == 2
    assert figures["steps_to_90_percent_of_teacher"] == 2


def test_tokens_per_second_is_over_updates_alone():
    # 160 tokens in 4 seconds; the last row updates nothing.
    assert run_figures(ROWS, teacher_accuracy=1.0)["tokens_per_second"] == 40.0


def test_a_target_that_is_never_reached_has_no_step():
    assert steps_to_accuracy(ROWS, 0.8) == 2
    assert steps_to_accuracy(ROWS, 0.81) is None


def summary(opd_steps: int | None, rl_steps: int | None) -> dict[str, object]:
    def run(steps: int | None) -> dict[str, object]:
        return {
            "accuracy": 0.8,
            "accuracy_interval": [0.7, 0.9],
            "steps": 20,
            "kl_first": 4.0,
            "kl_last": 0.5,
            "steps_to_90_percent_of_teacher": steps,
            "tokens_per_second": 40.0,
        }

    teacher = {"accuracy": 0.9, "accuracy_interval": [0.85, 0.95]}
    base = {"accuracy": 0.1, "accuracy_interval": [0.05, 0.15]}
    return {"base": base, "teacher": teacher, "opd": run(opd_steps), "rl": run(rl_steps)}


def test_the_verdict_says_what_happened_and_no_more():
    opd, rl, compared = verdict(summary(10, None))
    assert "went from 4.00 to 0.50 nats per token (-88%)" in opd
    assert "reached 90% of the teacher's accuracy (81.0%) by step 10, and ended at 80.0%" in opd
    assert "did not reach 90% of the teacher's accuracy (81.0%) in 20 steps" in rl
    assert "what one per completion did not; with more of them" in compared


def test_the_verdict_does_not_praise_distillation_when_it_lost():
    assert "did not catch up" in verdict(summary(None, 10))[-1]
    assert "RL was as quick here" in verdict(summary(10, 10))[-1]
    assert verdict(summary(10, 5))[-1].startswith("RL needed 5 steps where OPD needed 10")
    assert verdict(summary(5, 10))[-1] == "OPD needed 5 steps where RL needed 10."


def test_where_the_teacher_learned_nothing_no_student_is_said_to_have_caught_up():
    figures = summary(0, 0)
    figures["teacher"] = {"accuracy": 0.1, "accuracy_interval": [0.05, 0.15]}
    [only] = verdict(figures)
    assert "no better (10.0%) than the base model (10.0%)" in only


def test_the_comparison_shows_evaluated_steps_of_both_runs():
    console = Console(file=io.StringIO(), width=120, color_system=None)
    print_comparison(summary(10, None), ROWS, ROWS, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert any(line.split()[:1] == ["2"] and line.count("80.0% [70, 90]") == 2 for line in lines)
    assert not any(line.split()[:1] == ["1"] for line in lines)
