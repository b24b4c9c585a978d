"""The rows: which work is measured, who else does it, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from benchmarks.floor import Floor
from benchmarks.work import Work

_OURS, _CLIENTS = "benchmarks.ours", "benchmarks.clients"
_ALTERNATIVES = "benchmarks.alternatives"
_PEFT = f"{_ALTERNATIVES}.transformers_peft"
_CONTINUOUS = f"{_ALTERNATIVES}.continuous_batching"
_VLLM = f"{_ALTERNATIVES}.vllm_cpu"
_SKYRL = f"{_ALTERNATIVES}.skyrl_server"
_TRL = f"{_ALTERNATIVES}.trl_trainers"

QUICK_NAMES: Mapping[str, str] = {"vLLM": "vLLM, eager"}
"""Who is somebody else in a quick run: vLLM's compilation takes minutes, so there it goes without."""

_COMPILES = {"SkyRL": "compiles for a minute and more in every row; measured without --quick"}
IN_PROCESS = "tinkerlite, in process"
_LONG = {IN_PROCESS: "loads the model for every row; measured without --quick", **_COMPILES}
_STARTS_SLOWLY = {"SkyRL": "takes 40 s to start; measured without --quick"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of work, and everyone who does it."""

    key: str
    """Short name, for `--only`."""
    title: str
    """What is measured; the work's sizes are filled in."""
    unit: str
    metric: str
    """Which of the numbers of a measurement the row is about."""
    work: Work
    quick: Work
    """The same kind of work in the sizes of `--quick`."""
    ours: str
    alternatives: Mapping[str, str] = field(default_factory=lambda: {})
    """Functions, by who does it."""
    floor: Callable[[Floor, Work], float] | None = None
    not_quick: Mapping[str, str] = field(default_factory=lambda: {})
    """Alternatives that quick runs leave out, with the reason."""
    repeats: int = 3
    quick_repeats: int = 1

    @property
    def higher_is_better(self) -> bool:
        """Rates and shares should be high; times, sizes and counts low."""
        return self.unit.endswith("/s") or self.unit == "share"

    def name(self, work: Work) -> str:
        """The title with the sizes that were run."""
        return self.title.format(**asdict(work))


def _throughput(key: str, title: str, **rest: object) -> Row:
    return Row(key=key, title=title, unit="tok/s", metric="tokens_per_second", **rest)  # type: ignore[arg-type]


_SAMPLE = "sample {groups} prompts of {prompt} x {samples} x {tokens} tokens"
_TRAIN = "forward_backward importance_sampling + optim_step, "
_SHARED = "{groups} groups of {samples} x {tokens} tokens after prompts of {prompt}"

_TRAINING = Work(groups=64, tokens=256, rank=32)
_TRAINING_QUICK = Work(groups=8, tokens=128, rank=32)

ROWS: tuple[Row, ...] = (
    _throughput(
        "sample",
        _SAMPLE,
        work=Work(groups=16, samples=4, prompt=64, tokens=128),
        quick=Work(groups=4, samples=4, prompt=32, tokens=32),
        ours=f"{_OURS}:sample",
        alternatives={
            IN_PROCESS: f"{_OURS}:sample_in_process",
            "transformers generate": f"{_PEFT}:generate",
            "transformers continuous batching": f"{_CONTINUOUS}:sample",
            "vLLM": f"{_VLLM}:sample",
            "SkyRL": f"{_SKYRL}:sample",
        },
        floor=Floor.sample,
        not_quick=_LONG,
    ),
    _throughput(
        "sample-lora",
        _SAMPLE + ", LoRA rank {rank}",
        work=Work(groups=16, samples=4, prompt=64, tokens=128, rank=32),
        quick=Work(groups=4, samples=4, prompt=32, tokens=32, rank=32),
        ours=f"{_OURS}:sample",
        alternatives={
            "transformers generate + PEFT": f"{_PEFT}:generate",
            "vLLM": f"{_VLLM}:sample",
            "SkyRL": f"{_SKYRL}:sample",
        },
        floor=Floor.sample,
        not_quick=_COMPILES,
    ),
    _throughput(
        "sample-one",
        _SAMPLE,
        work=Work(prompt=64, tokens=128),
        quick=Work(prompt=32, tokens=32),
        ours=f"{_OURS}:sample",
        alternatives={
            IN_PROCESS: f"{_OURS}:sample_in_process",
            "transformers generate": f"{_PEFT}:generate",
            "vLLM": f"{_VLLM}:sample",
            "SkyRL": f"{_SKYRL}:sample",
        },
        floor=Floor.sample,
        not_quick=_LONG,
    ),
    _throughput(
        "sample-mixed",
        "{groups} concurrent samples of mixed lengths, {prompt} + {tokens} tokens on average",
        work=Work(groups=200, prompt=64, tokens=64),
        # As many in both sizes: the row is about more samples than run at once.
        quick=Work(groups=200, prompt=16, tokens=8),
        ours=f"{_OURS}:sample_mixed",
        alternatives={"tinkerlite, uniform lengths": f"{_OURS}:sample"},
        floor=Floor.sample,
    ),
    Row(
        key="sample-turns",
        title="{groups} conversations of {turns} turns, each of {prompt} tokens and an answer of {tokens}",
        unit="s",
        metric="seconds",
        work=Work(groups=8, prompt=128, tokens=32, turns=4),
        quick=Work(groups=4, prompt=64, tokens=8, turns=4),
        ours=f"{_OURS}:sample_turns",
        alternatives={
            "transformers generate": f"{_PEFT}:sample_turns",
            "vLLM": f"{_VLLM}:sample_turns",
        },
        floor=Floor.sample_turns,
    ),
    Row(
        key="sample-busy",
        title="share left of " + _SAMPLE + " while another process keeps one core busy",
        unit="share",
        metric="share",
        work=Work(prompt=64, tokens=64),
        quick=Work(prompt=16, tokens=8),
        ours=f"{_OURS}:sample_beside_a_busy_core",
        alternatives={"transformers generate": f"{_PEFT}:generate_beside_a_busy_core"},
    ),
    _throughput(
        "score",
        "compute_logprobs of {groups} sequences x {tokens} tokens",
        work=Work(groups=64, tokens=256),
        quick=Work(groups=8, tokens=128),
        ours=f"{_OURS}:score",
        alternatives={
            IN_PROCESS: f"{_OURS}:score_in_process",
            "transformers, padded": f"{_PEFT}:score",
            "vLLM": f"{_VLLM}:score",
            "SkyRL": f"{_SKYRL}:score",
        },
        floor=Floor.score,
        not_quick=_LONG,
    ),
    _throughput(
        "score-shared",
        "compute_logprobs, " + _SHARED,
        work=Work(groups=8, samples=8, prompt=512, tokens=64),
        quick=Work(groups=2, samples=4, prompt=128, tokens=16),
        ours=f"{_OURS}:score",
        alternatives={
            "tinkerlite, nothing shared": f"{_OURS}:score_unshared",
            "transformers, padded": f"{_PEFT}:score",
            "vLLM": f"{_VLLM}:score",
        },
        floor=Floor.score,
    ),
    _throughput(
        "train",
        _TRAIN + "{groups} sequences x {tokens} tokens, LoRA rank {rank}",
        work=_TRAINING,
        quick=_TRAINING_QUICK,
        ours=f"{_OURS}:train",
        alternatives={
            IN_PROCESS: f"{_OURS}:train_in_process",
            "transformers + PEFT, padded": f"{_PEFT}:train",
            "SkyRL": f"{_SKYRL}:train",
        },
        floor=Floor.train,
        not_quick=_LONG,
    ),
    Row(
        key="train-memory",
        title="peak memory of that: " + _TRAIN + "{groups} sequences x {tokens} tokens, LoRA rank {rank}",
        unit="MiB",
        metric="peak_rss_mib",
        work=_TRAINING,
        quick=_TRAINING_QUICK,
        ours=f"{_OURS}:train",
        alternatives={"transformers + PEFT, padded": f"{_PEFT}:train", "SkyRL": f"{_SKYRL}:train"},
        not_quick=_COMPILES,
    ),
    _throughput(
        "train-shared",
        _TRAIN + _SHARED + ", LoRA rank {rank}",
        work=Work(groups=2, samples=8, prompt=512, tokens=64, rank=32),
        quick=Work(groups=2, samples=4, prompt=128, tokens=16, rank=32),
        ours=f"{_OURS}:train_shared",
        alternatives={
            "tinkerlite, nothing shared": f"{_OURS}:train_unshared",
            "transformers + PEFT, padded": f"{_PEFT}:train",
        },
        floor=Floor.train,
    ),
    Row(
        key="opd-step",
        title="OPD step: {groups} prompts of {prompt} x {tokens} tokens, teacher = base, LoRA rank {rank}",
        unit="s",
        metric="seconds",
        work=Work(groups=16, prompt=64, tokens=128, rank=32),
        quick=Work(groups=8, prompt=32, tokens=16, rank=32),
        ours=f"{_OURS}:opd_step",
        alternatives={
            IN_PROCESS: f"{_OURS}:opd_step_in_process",
            "transformers + PEFT": f"{_PEFT}:opd_step",
            "TRL DistillationTrainer": f"{_TRL}:opd_step",
            "SkyRL": f"{_SKYRL}:opd_step",
        },
        floor=Floor.opd_step,
        not_quick=_LONG,
    ),
    Row(
        key="rl-step",
        title="RL step: {groups} prompts of {prompt} x {samples} x {tokens} tokens, LoRA rank {rank}",
        unit="s",
        metric="seconds",
        work=Work(groups=8, samples=8, prompt=64, tokens=64, rank=32),
        quick=Work(groups=2, samples=4, prompt=32, tokens=16, rank=32),
        ours=f"{_OURS}:rl_step",
        alternatives={
            "transformers + PEFT": f"{_PEFT}:rl_step",
            "TRL GRPOTrainer": f"{_TRL}:rl_step",
            "SkyRL": f"{_SKYRL}:rl_step",
        },
        floor=Floor.rl_step,
        not_quick=_COMPILES,
    ),
    Row(
        key="weights-to-sampler",
        title="weights to the sampler (save_weights_and_get_sampling_client), LoRA rank {rank}",
        unit="ms",
        metric="milliseconds",
        work=Work(tokens=16, rank=32),
        quick=Work(tokens=16, rank=32),
        ours=f"{_OURS}:weights_to_sampler",
        alternatives={
            "vLLM": f"{_VLLM}:weights_to_sampler",
            "SkyRL": f"{_SKYRL}:weights_to_sampler",
        },
        floor=Floor.weights_to_sampler_milliseconds,
        repeats=10,
        quick_repeats=5,
        not_quick=_COMPILES,
    ),
    Row(
        key="request",
        title="trivial request: prompt of {prompt}, one token; all but ours and SkyRL's in process",
        unit="ms",
        metric="milliseconds",
        work=Work(prompt=8),
        quick=Work(prompt=8),
        ours=f"{_OURS}:request",
        alternatives={
            IN_PROCESS: f"{_OURS}:request_in_process",
            "transformers generate": f"{_PEFT}:request",
            "vLLM": f"{_VLLM}:request",
            "SkyRL": f"{_SKYRL}:request",
        },
        floor=Floor.request_milliseconds,
        not_quick=_STARTS_SLOWLY,
        repeats=30,
        quick_repeats=10,
    ),
    Row(
        key="request-overhead",
        title="the same beyond the engine's own time: what client, HTTP and server add",
        unit="ms",
        metric="milliseconds",
        work=Work(prompt=8),
        quick=Work(prompt=8),
        ours=f"{_OURS}:request_overhead",
        repeats=100,
        quick_repeats=50,
    ),
    Row(
        key="cold-start",
        title="start to first token, weights on disk; ours and SkyRL a server, others a script",
        unit="s",
        metric="seconds",
        work=Work(prompt=8),
        quick=Work(prompt=8),
        ours=f"{_OURS}:cold_start",
        alternatives={
            "transformers generate": f"{_PEFT}:cold_start",
            "vLLM": f"{_VLLM}:cold_start",
            "SkyRL": f"{_SKYRL}:cold_start",
        },
        floor=Floor.cold_start,
        not_quick=_STARTS_SLOWLY,
    ),
    Row(
        key="import",
        title="import of ServiceClient, TrainingClient, SamplingClient and types",
        unit="s",
        metric="seconds",
        work=Work(),
        quick=Work(),
        ours=f"{_CLIENTS}:our_import",
        alternatives={"official SDK": f"{_CLIENTS}:official_import"},
        quick_repeats=3,
    ),
    Row(
        key="import-memory",
        title="peak memory of a process that imports them",
        unit="MiB",
        metric="peak_rss_mib",
        work=Work(),
        quick=Work(),
        ours=f"{_CLIENTS}:our_import",
        alternatives={"official SDK": f"{_CLIENTS}:official_import"},
        quick_repeats=3,
    ),
    Row(
        key="import-packages",
        title="packages that an installation of the client has",
        unit="packages",
        metric="packages",
        work=Work(),
        quick=Work(),
        ours=f"{_CLIENTS}:our_installation",
        alternatives={"official SDK": f"{_CLIENTS}:official_installation"},
    ),
    Row(
        key="import-size",
        title="size of them, installed",
        unit="MiB",
        metric="mebibytes",
        work=Work(),
        quick=Work(),
        ours=f"{_CLIENTS}:our_installation",
        alternatives={"official SDK": f"{_CLIENTS}:official_installation"},
    ),
    Row(
        key="submit",
        title="client's CPU time of a forward_backward, {groups} datums x {tokens} tokens",
        unit="ms",
        metric="cpu_milliseconds",
        work=Work(groups=128, tokens=1024),
        quick=Work(groups=32, tokens=1024),
        ours=f"{_CLIENTS}:our_submission",
        alternatives={"official SDK": f"{_CLIENTS}:official_submission"},
        floor=Floor.submission_milliseconds,
        repeats=7,
        quick_repeats=5,
    ),
)
