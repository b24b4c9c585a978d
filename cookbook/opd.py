"""On-policy distillation: sample from the student, let a teacher grade every token.

The idea. The student's own completions, as in RL, so it learns where it really goes; a teacher's
opinion of every single token, as in supervised learning, so a completion teaches as much as it has
tokens. Each token's advantage is how much likelier the teacher finds it than the student does. This
file is `rl.py` with one line changed.

The command, with a server running (`tinkerlite serve --model HuggingFaceTB/SmolLM2-135M-Instruct`)
and a teacher that `cookbook.sft` saved:

    python -m cookbook.opd --task sums --teacher tinker://...

What you should see. The reverse KL falls from the first step on, no reward needed; accuracy follows
once the student has stopped answering in sentences. Without `--teacher` the teacher is the base model
that the student still is: the KL is rounding noise, of which Adam makes a full first step all the same.
"""

from collections.abc import Sequence

from cookbook import advantages
from cookbook.loop import TrainConfig, train
from cookbook.runs import open_on_policy_run

CONFIG = TrainConfig(steps=25, prompts_per_step=8, group_size=8, learning_rate=1e-3)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    with open_on_policy_run(__file__, __doc__, CONFIG, argv) as run:
        train(
            run.config,
            run.student,
            run.task,
            renderer=run.renderer,
            teacher=run.teacher,
            advantages=advantages.reverse_kl(run.teacher),
            record=run.record,
            earlier=run.earlier,
            checkpoint=run.checkpoint,
        )


if __name__ == "__main__":
    main()
