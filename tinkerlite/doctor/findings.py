"""Finding: what one check found, in words. And how far two sets of logprobs may be apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinkerlite.errors import APIResponseValidationError, APIStatusError, CapabilityError, TinkerError

Outcome = Literal["pass", "warn", "fail", "skip"]
"""`skip`: the server cannot do that, or an earlier finding makes it moot."""

EXACT = 1e-5
"""Mean |difference| in nats of two computations of one logprob in float32."""
HALF_PRECISION = 1e-2
"""The same in bfloat16 and float16; also asked of a server that does not say its dtype."""
TOLERABLE = 1e-1
"""Beyond this, importance ratios are off by a tenth at every token: not rounding, but other numbers."""

TROUBLE = (TinkerError, TimeoutError, LookupError, ValueError, TypeError)
"""What a check may end in: errors of the client, and of reading answers of another shape than asked for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    outcome: Outcome
    says: str
    advice: str = ""
    """Empty where there is nothing to do."""
    measured: Mapping[str, object] = field(default_factory=lambda: {})
    """The numbers behind the words, by name."""


def attempt(check: str, examine: Callable[[], Finding]) -> Finding:
    """One check; whatever goes wrong in it is what it found."""
    try:
        return examine()
    except TROUBLE as error:
        outcome: Outcome = "skip" if is_not_offered(error) else "fail"
        advice = "" if outcome == "skip" else "the server's log may say more"
        return Finding(check=check, outcome=outcome, says=in_words(error), advice=advice)


def is_not_offered(error: Exception) -> bool:
    """Whether the server lacks what was asked for, rather than failing at it."""
    unknown = isinstance(error, APIStatusError) and error.status_code in (404, 405, 501)
    return unknown or isinstance(error, CapabilityError)


def in_words(error: Exception) -> str:
    """An error in one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    if is_not_offered(error):
        return f"this server does not offer it: {line}"
    if isinstance(error, TinkerError | TimeoutError):
        return line
    return f"the answer is not what was asked for: {line}"


def bound_for(dtype: str | None) -> float:
    """How far apart two computations of one logprob may be on average, by the server's dtype."""
    return EXACT if dtype == "float32" else HALF_PRECISION


def judge(mean: float, dtype: str | None) -> Outcome:
    """Within the dtype's precision, tolerable, or wrong. A NaN is wrong."""
    if mean <= bound_for(dtype):
        return "pass"
    return "warn" if mean <= TOLERABLE else "fail"


def precision(dtype: str | None) -> str:
    """The bound in words."""
    name = dtype or "a dtype it does not name"
    return f"{bound_for(dtype):g} is the bound for {name}"


def apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and largest |difference|; NaN if either has one.

    Raises:
        APIResponseValidationError: there are not as many of one as of the other.
    """
    if one.shape != other.shape:
        raise APIResponseValidationError(
            message=f"{one.size} and {other.size} logprobs came back for the same tokens"
        )
    differences = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(differences.mean()), float(differences.max())


def as_array(logprobs: list[float | None]) -> NDArray[np.float32]:
    """(P,) with NaN where there is none."""
    return np.asarray([np.nan if each is None else each for each in logprobs], dtype=np.float32)
