"""AdamW over what one run trains, through torch's own.

Hyperparameters come with each step, so schedules live in the client; the moments and the step
count live here.

Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from tinkerlite.types import AdamParams
from tinkerlite_server.errors import BadRequest

Moments = dict[str, tuple[Tensor, Tensor]]
"""First and second moment by parameter name."""


class Trainable(Protocol):
    """An adapter, or a whole model."""

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor that is trained by name, in a fixed order."""
        ...


class AdamW:
    """Optimizer state of one run."""

    def __init__(self, weights: Trainable) -> None:
        self._named = dict(weights.parameters())
        self._torch = torch.optim.AdamW(list(self._named.values()), fused=True)

    def step(self, params: AdamParams) -> dict[str, float]:
        """One step on the accumulated gradients, which are then zero.

        Raises:
            BadRequest: the gradient is not finite; it is dropped, and nothing else changes.
        """
        for tensor in self._named.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        limit = params.grad_clip_norm if params.grad_clip_norm > 0 else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._named.values()), limit))
        if norm != norm or norm == float("inf"):
            self._torch.zero_grad()
            raise BadRequest(
                f"the accumulated gradient's norm is {norm}; it was dropped and no step was taken"
            )
        for group in self._torch.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        try:
            self._torch.step()
        except Exception:
            # Memory may run out while the first step makes its moments.
            for tensor, state in list(self._torch.state.items()):
                if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
                    del self._torch.state[tensor]
            raise
        self._torch.zero_grad()
        return {"grad_norm": norm, "learning_rate": params.learning_rate, "step": float(self.steps)}

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        state = next(iter(self._torch.state.values()), None)
        return 0 if state is None else int(state["step"])

    def state(self) -> tuple[Moments, int]:
        """The moments themselves, to be copied before the next step, and the step count.

        Before the first step: zeros and 0.
        """
        moments: Moments = {}
        for name, tensor in self._named.items():
            state = self._torch.state.get(tensor)
            zeros = torch.zeros_like(tensor)
            moments[name] = (zeros, zeros) if not state else (state["exp_avg"], state["exp_avg_sq"])
        return moments, self.steps

    def load_state(self, moments: Moments, steps: int) -> None:
        """Go on from saved state.

        Raises:
            BadRequest: it belongs to other parameters.
        """
        if {n: m[0].shape for n, m in moments.items()} != {n: t.shape for n, t in self._named.items()}:
            raise BadRequest("the saved optimizer state belongs to weights of other names or shapes")
        for name, tensor in self._named.items():
            first, second = moments[name]
            self._torch.state[tensor] = {
                "step": torch.tensor(float(steps), device=tensor.device),  # where the fused kernel wants it
                "exp_avg": first.to(tensor.device, torch.float32),
                "exp_avg_sq": second.to(tensor.device, torch.float32),
            }
