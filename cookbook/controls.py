"""Controls: what a claim about distillation should be compared with.

A student that gets better under a teacher may have learned what the teacher knows. Or it only stopped
doing what the teacher finds unlikely, which is less, and for which a penalty of one size is enough:
that has been reported to come close to distillation (arXiv:2608.31046). Run it beside every experiment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cookbook.advantages import AdvantageFn, Scorer, kl_per_token
from cookbook.datums import Floats
from cookbook.rollouts import Group


def fixed_negative(teacher: Scorer, *, objects_above: float = 0.1, size: float = 1.0) -> AdvantageFn:
    """One and the same penalty on every token that the teacher finds less likely than the student did.

        A_t = - size  where kl_t > objects_above,    else 0

    What is left of the teacher is which tokens it objects to: not how strongly, nor what it prefers.

    Args:
        teacher: scores the completions.
        objects_above: nats by which a token must be less likely to be objected to. At 0 rounding is.
        size: of the penalty. Adam forgets it.
    """

    def advantages(groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [np.where(kl > objects_above, -size, 0.0).astype(np.float32) for kl in of_group]
            for of_group in kl_per_token(groups, teacher.score(groups))
        ]

    return advantages
