"""Reinforcement learning: do more of what beat the other attempts at the same prompt.

The idea. Sample a group of completions per prompt, reward each as a whole, and push every token of
it up or down by how far its reward lies from its group's mean. One number per completion: about
one bit, however many tokens there are. `--teacher` only watches: the table shows how far the
student is from it, and nothing is learned from that.

The command, with a server running (`tinkerlite serve --model HuggingFaceTB/SmolLM2-135M-Instruct`):

    python -m cookbook.rl --task sums --teacher tinker://...

What you should see. Nothing, as long as no completion of a group beats another: the base model never
answers a sum exactly, so the form of an answer earns a little (`--no-format-credit` shows what happens
otherwise). The reward then climbs slowly, and accuracy later still.
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
            advantages=advantages.group_relative,
            record=run.record,
            earlier=run.earlier,
            checkpoint=run.checkpoint,
        )


if __name__ == "__main__":
    main()
