"""Supervised fine-tuning: copy the right answers, token by token.

The idea. Cross-entropy on answers that somebody else wrote. The signal is dense, one target per
token, but it says nothing about states that only the student gets into. Here it makes the teachers
that `cookbook.opd` distils from.

The command, with a server running (`tinkerlite serve --model HuggingFaceTB/SmolLM2-135M-Instruct`):

    python -m cookbook.sft --task sums --steps 30

What you should see. The base model answers sums in sentences and scores 0. Within a few updates the
loss falls below 1 nat per token and the answers become bare numbers; from then on they become the
right ones. At the end it says where the weights are, ready for `--teacher`, and what they cost.
"""

from collections.abc import Sequence

from cookbook.runs import open_supervised_run
from cookbook.supervised import SupervisedConfig, train_supervised

CONFIG = SupervisedConfig(steps=30, batch_size=32, learning_rate=1e-3)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    with open_supervised_run(__file__, __doc__, CONFIG, argv) as run:
        train_supervised(
            run.config,
            run.student,
            run.task,
            renderer=run.renderer,
            record=run.record,
            earlier=run.earlier,
            checkpoint=run.checkpoint,
        )


if __name__ == "__main__":
    main()
