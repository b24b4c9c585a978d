"""Custom losses as a user of the `tinker` SDK writes them; a test runs this in that SDK's own environment.

    TINKER_API_KEY=tml-any python official_sdk_custom_loss.py URL BASE_MODEL {server|client}

Trains a few steps with each loss, whichever side runs them, and prints what came of it as JSON.
The last word says which side it should be. Knows nothing of tinkerlite.
"""

import json
import math
import sys

import torch
import torch.nn.functional as F
from tinker import ServiceClient, types


def clipped_policy_gradient(logprobs, old, advantages, mask):
    """PPO, averaged over the mask of a sequence, with figures to look at."""
    ratio = (logprobs - old).exp()
    clipped = torch.clamp(ratio, min=0.8, max=1.2)
    objective = torch.minimum(ratio * advantages, clipped * advantages) * mask
    count = mask.sum().clamp(min=1)
    loss = -objective.sum() / count
    kl = F.smooth_l1_loss(logprobs, old, reduction="sum") / math.sqrt(logprobs.shape[0])
    return loss + 0.1 * kl, {
        "custom/clipped:mean": (ratio != clipped).float().mean(),
        "custom/tokens:sum": mask.sum(),
    }


def pairwise(logprobs, mask):
    """A term for every pair of positions, and the worst of them; masked indexing, sorting, softmax."""
    chosen = logprobs[mask > 0]
    gaps = F.softplus(chosen[:, None] - chosen[None, :])
    weights = torch.softmax(-logprobs.detach(), dim=0)
    worst, place = logprobs.min(dim=0)
    best = logprobs.sort(descending=True).values[:2]
    positions = torch.arange(logprobs.shape[0], device=logprobs.device) / logprobs.numel()
    ramp = torch.where(positions > 0.5, logprobs, 0.0).sum()
    loss = gaps.mean() + (weights * -logprobs).sum() - worst - best.mean() + 0.1 * ramp
    return loss, {"custom/place:mean": place.float()}


def soft_targets(logprobs, teacher, temperature):
    """Reverse KL over K targets a position; a number for each datum."""
    log_p = F.log_softmax(logprobs / temperature, dim=-1)
    log_q = torch.log_softmax(teacher, -1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence.sum(), {"custom/kl:sum": divergence.sum()}


SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 12], [30, 31, 32, 33, 34, 35, 36, 37, 38]]


def datum(tokens, targets=None, **inputs):
    inputs = {name: torch.tensor(value) for name, value in inputs.items()}
    targets = torch.tensor(tokens[1:]) if targets is None else targets
    model_input = types.ModelInput.from_ints(tokens[:-1])
    return types.Datum(model_input=model_input, loss_fn_inputs={"target_tokens": targets, **inputs})


def sequences(scale=1.0):
    data = []
    for tokens in SEQUENCES:
        n = len(tokens) - 1
        data.append(
            datum(
                tokens,
                old=[-2.0 - 0.3 * i for i in range(n)],
                advantages=[scale * (-1.0) ** i for i in range(n)],
                mask=[float(i > 0) for i in range(n)],
            )
        )
    return data


def many_targets():
    data = []
    for tokens in SEQUENCES:
        n = len(tokens) - 1
        targets = torch.tensor([[tokens[i + 1], 40 + i, 60 + i] for i in range(n)])
        teacher = [[1.0 + 0.1 * i, 0.5, -0.5] for i in range(n)]
        data.append(datum(tokens, targets, teacher=teacher, temperature=1.5))
    return data


def main(url, base_model, side):
    said = []
    losses = [
        (clipped_policy_gradient, sequences(), {"logprobs": 1, "old": 1, "advantages": 1, "mask": 1}),
        (pairwise, sequences(), {"logprobs": 1, "mask": 1}),
        (soft_targets, many_targets(), {"logprobs": 2, "teacher": 2, "temperature": 0}),
    ]
    with ServiceClient(base_url=url) as service:
        for function, data, ranks in losses:
            handle = service.create_custom_loss(function, input_ranks=ranks).result()
            assert (handle.loss_id is not None) == (side == "server"), handle
            client = service.create_lora_training_client(base_model=base_model, rank=4, seed=1).result()
            for _ in range(3):
                update = client.forward_backward_custom(data, handle)
                stepped = client.optim_step(types.AdamParams(learning_rate=1e-2))
                metrics = update.result().metrics
                said.append({key: metrics[key] for key in sorted(metrics) if "surrogate" not in key})
                said.append({"grad_norm": stepped.result().metrics["grad_norm"]})
            plain = [
                types.Datum(model_input=d.model_input, loss_fn_inputs={"target_tokens": t})
                for d in data
                for t in [d.loss_fn_inputs["target_tokens"]]
            ]
            trained = client.forward(plain, loss_fn="cross_entropy").result()
            said += [output["logprobs"].tolist() for output in trained.loss_fn_outputs]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
