"""Settings: what one server is told at its start. Every field is read, and none changes later."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a caller may ask for, and how long things are kept."""

    max_body_bytes: int = 64 * 2**20
    """Largest request body; also what a sparse tensor may unfold to."""
    chunk_datums: int = 1024
    """Clients split a forward_backward into requests of at most this many datums."""
    chunk_bytes: int = 5_000_000
    """... and of at most this many bytes, as they estimate them."""
    max_lora_rank: int = 1024
    max_samples: int = 1024
    """Most `num_samples` of one request."""
    max_topk: int = 1000
    """Most alternatives a position, likeliest or drawn, in each of the fields of `asample` for them."""
    max_custom_losses: int = 64
    """Custom losses that a session may upload."""
    max_loss_bytes: int = 2**20
    """Largest body that uploads one."""
    max_topk_values: int = 16_000_000
    """Most (position, alternative) pairs in one answer: 8 to 16 bytes each."""

    max_queued_samples: int = 8192
    """Samples waiting or running over all callers; beyond it `asample` is answered 429."""
    max_queued_operations: int = 1024
    """Operations waiting in one training run; beyond it the next one is answered 429."""
    gap_seconds: float = 360.0
    """How long operations wait for a missing `seq_id` before they fail. Clients re-send for five minutes."""

    turn_tokens: int = 16_384
    """Most training tokens between two turns of the sampler: larger requests are cut, small ones merged."""
    sampler_window: int = 256
    """Samples handed to the engine at once, per base model; the rest wait in turn, caller by caller."""
    snapshots_per_run: int = 8
    """Unnamed sampler weights a run keeps in memory; the least recently used goes first."""
    loaded_adapters: int = 16
    """Saved sampler weights kept in memory; the least recently used is read again when next used."""

    poll_seconds: float = 25.0
    """How long `retrieve_future` holds a pending request. Clients give up at 45 s."""
    result_seconds: float = 900.0
    """How long a result can be fetched again after it was first delivered."""
    unfetched_seconds: float = 7200.0
    """How long a result that nobody fetched is kept."""
    max_result_bytes: int = 512 * 2**20
    """Results kept at once; beyond it the oldest go, delivered ones first."""
    download_seconds: float = 3600.0
    """How long a link to saved weights works."""
    session_seconds: float = 600.0
    """A session without any sign of life for this long ends, and its runs are freed."""
    sweep_seconds: float = 15.0
    """How often expired things are looked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a server listens, for whom, and where it keeps what lasts."""

    data_dir: Path
    """Holds checkpoints and their metadata; made if missing."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    """Keys that are let in. None: any key is, which `serve` allows on loopback alone."""
    session_poller: bool = False
    """Whether clients that can are asked to wait for all samples of a session in one poll."""
    far_clients: bool = False
    """Whether clients are asked to compress training data, and to send the parts of a large batch side by
    side: on a slow line that saves time, on a fast one it costs some."""
    custom_losses: bool = False
    """Whether callers may upload losses of their own (checked graphs, never code) to be run here."""
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
