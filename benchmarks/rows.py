"""The rows: which work is measured, who else does it, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from benchmarks.floor import Floor
from benchmarks.work import Work

_OTHERS = "benchmarks.alternatives"
_OURS = "benchmarks.ours"

VLLM, SKYRL, TRL = "vLLM", "SkyRL", "TRL"
ELSEWHERE = "needs an environment of its own, which this benchmark does not set up"
"""Why these are in no row yet that they belong to."""


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
    elsewhere: tuple[str, ...] = ()
    """Who else belongs here and cannot be run from this environment."""
    floor: Callable[[Floor, Work], float] | None = None
    repeats: int = 3
    quick_repeats: int = 1

    @property
    def higher_is_better(self) -> bool:
        """Rates should be high; times and sizes low."""
        return self.unit.endswith("/s")

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
        alternatives={"transformers generate": f"{_OTHERS}:generate"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.sample,
    ),
    _throughput(
        "sample-lora",
        _SAMPLE + ", LoRA rank {rank}",
        work=Work(groups=16, samples=4, prompt=64, tokens=128, rank=32),
        quick=Work(groups=4, samples=4, prompt=32, tokens=32, rank=32),
        ours=f"{_OURS}:sample",
        alternatives={"transformers generate + PEFT": f"{_OTHERS}:generate"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.sample,
    ),
    _throughput(
        "sample-one",
        _SAMPLE,
        work=Work(prompt=64, tokens=128),
        quick=Work(prompt=32, tokens=32),
        ours=f"{_OURS}:sample",
        alternatives={"transformers generate": f"{_OTHERS}:generate"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.sample,
    ),
    _throughput(
        "sample-mixed",
        "{groups} concurrent samples of mixed lengths, {prompt} + {tokens} tokens on average",
        work=Work(groups=200, prompt=64, tokens=64),
        quick=Work(groups=24, prompt=16, tokens=16),
        ours=f"{_OURS}:sample_mixed",
        alternatives={"tinkerlite, uniform lengths": f"{_OURS}:sample"},
        floor=Floor.sample,
    ),
    _throughput(
        "score",
        "compute_logprobs of {groups} sequences x {tokens} tokens",
        work=Work(groups=64, tokens=256),
        quick=Work(groups=8, tokens=128),
        ours=f"{_OURS}:score",
        alternatives={"transformers, padded": f"{_OTHERS}:score"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.score,
    ),
    _throughput(
        "score-shared",
        "compute_logprobs, " + _SHARED,
        work=Work(groups=8, samples=8, prompt=512, tokens=64),
        quick=Work(groups=2, samples=4, prompt=128, tokens=16),
        ours=f"{_OURS}:score",
        alternatives={
            "tinkerlite, nothing shared": f"{_OURS}:score_unshared",
            "transformers, padded": f"{_OTHERS}:score",
        },
        elsewhere=(VLLM,),
        floor=Floor.score,
    ),
    _throughput(
        "train",
        _TRAIN + "{groups} sequences x {tokens} tokens, LoRA rank {rank}",
        work=_TRAINING,
        quick=_TRAINING_QUICK,
        ours=f"{_OURS}:train",
        alternatives={"transformers + PEFT, padded": f"{_OTHERS}:train"},
        elsewhere=(SKYRL,),
        floor=Floor.train,
    ),
    Row(
        key="train-memory",
        title="peak memory of that: " + _TRAIN + "{groups} sequences x {tokens} tokens, LoRA rank {rank}",
        unit="MiB",
        metric="peak_rss_mib",
        work=_TRAINING,
        quick=_TRAINING_QUICK,
        ours=f"{_OURS}:train",
        alternatives={"transformers + PEFT, padded": f"{_OTHERS}:train"},
        elsewhere=(SKYRL,),
    ),
    _throughput(
        "train-shared",
        _TRAIN + _SHARED + ", LoRA rank {rank}",
        work=Work(groups=2, samples=8, prompt=512, tokens=64, rank=32),
        quick=Work(groups=2, samples=4, prompt=128, tokens=16, rank=32),
        ours=f"{_OURS}:train_shared",
        alternatives={
            "tinkerlite, nothing shared": f"{_OURS}:train_unshared",
            "transformers + PEFT, padded": f"{_OTHERS}:train",
        },
        floor=Floor.train,
    ),
    Row(
        key="opd-step",
        title="OPD step: {groups} prompts of {prompt} x {tokens} tokens, teacher = base, LoRA rank {rank}",
        unit="s",
        metric="seconds",
        work=Work(groups=16, prompt=64, tokens=128, rank=32),
        quick=Work(groups=8, prompt=32, tokens=32, rank=32),
        ours=f"{_OURS}:opd_step",
        alternatives={"transformers + PEFT": f"{_OTHERS}:opd_step"},
        elsewhere=(TRL, SKYRL),
        floor=Floor.opd_step,
    ),
    Row(
        key="weights-to-sampler",
        title="weights to the sampler (save_weights_and_get_sampling_client), LoRA rank {rank}",
        unit="ms",
        metric="milliseconds",
        work=Work(tokens=16, rank=32),
        quick=Work(tokens=16, rank=32),
        ours=f"{_OURS}:weights_to_sampler",
        elsewhere=(VLLM, SKYRL),
        floor=Floor.weights_to_sampler_milliseconds,
        repeats=10,
        quick_repeats=5,
    ),
    Row(
        key="request",
        title="trivial request: prompt of {prompt}, one token; ours over HTTP, others in process",
        unit="ms",
        metric="milliseconds",
        work=Work(prompt=8),
        quick=Work(prompt=8),
        ours=f"{_OURS}:request",
        alternatives={"transformers generate": f"{_OTHERS}:request"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.request_milliseconds,
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
        title="start to first token, weights on disk; ours a server, others a script",
        unit="s",
        metric="seconds",
        work=Work(prompt=8),
        quick=Work(prompt=8),
        ours=f"{_OURS}:cold_start",
        alternatives={"transformers generate": f"{_OTHERS}:cold_start"},
        elsewhere=(VLLM, SKYRL),
        floor=Floor.cold_start,
    ),
    Row(
        key="import",
        title="import of ServiceClient, TrainingClient, SamplingClient and types",
        unit="s",
        metric="seconds",
        work=Work(),
        quick=Work(),
        ours=f"{_OURS}:client_import",
        alternatives={"official SDK": f"{_OURS}:official_import"},
        quick_repeats=3,
    ),
    Row(
        key="import-memory",
        title="peak memory of a process that imports them",
        unit="MiB",
        metric="peak_rss_mib",
        work=Work(),
        quick=Work(),
        ours=f"{_OURS}:client_import",
        alternatives={"official SDK": f"{_OURS}:official_import"},
        quick_repeats=3,
    ),
)
