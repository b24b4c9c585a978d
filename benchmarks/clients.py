"""What a client costs its own process: ours, and the official SDK in an environment that holds nothing else.

The same scripts run in both environments. What is submitted goes to one server of a model that costs nothing,
since the server's time is no part of it.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.environments import OFFICIAL
from benchmarks.work import Job
from cookbook.server_process import running_server

Measured = dict[str, list[float]]

OURS, THEIRS = "tinkerlite", "tinker"
"""Names of the modules, and of the distributions."""
_VOCABULARY = 256

# ---- importing ----

_IMPORT = r"""
import json, re, resource, sys, time
from pathlib import Path
started = time.perf_counter()
__import__(sys.argv[1], fromlist=["ServiceClient", "TrainingClient", "SamplingClient", "types"])
seconds = time.perf_counter() - started
if sys.platform == "linux":  # whose ru_maxrss is the parent's, if that was larger
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([seconds, peak]))
"""


def our_import(job: Job) -> Measured:
    """Seconds of importing the client in a fresh interpreter, and that interpreter's memory after it.

    What is imported are the classes that a loop uses: names that load on first use cost nothing until then.
    """
    return _import(OURS, sys.executable, job.repeats)


def official_import(job: Job) -> Measured:
    """The same for the official SDK."""
    return _import(THEIRS, OFFICIAL.python(), job.repeats)


def _import(name: str, python: str, repeats: int) -> Measured:
    # The first one compiles, and fills the file cache.
    measured = [_ask(python, _IMPORT, name) for _ in range(repeats + 1)][1:]
    return {
        "seconds": [seconds for seconds, _ in measured],
        "peak_rss_mib": [memory for _, memory in measured],
    }


# ---- installing ----

_INSTALLED = """
import json, re, sys
from importlib.metadata import distribution
from pathlib import Path
from packaging.requirements import Requirement

found, waiting = {}, [(sys.argv[1], "")]
while waiting:
    name, extra = waiting.pop()
    key = re.sub("[-_.]+", "-", name).lower()
    new = found.setdefault(key, set())
    if extra in new:
        continue
    new.add(extra)
    for line in distribution(name).requires or []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            waiting += [(needed.name, each) for each in ["", *needed.extras]]

def size(name):
    # An editable installation has its files elsewhere: those of the package that is imported.
    files = [Path(path.locate()) for path in distribution(name).files or []]
    if name == sys.argv[1] and not any(path.parent.name == name for path in files):
        files += Path(__import__(name).__file__).parent.rglob("*.py*")
    return sum(path.stat().st_size for path in files if path.is_file())

print(json.dumps([len(found), sum(map(size, found)) / 2**20]))
"""


def our_installation(job: Job) -> Measured:
    """Packages that the client needs, itself among them, and mebibytes of their files."""
    return _installation(OURS, sys.executable)


def official_installation(job: Job) -> Measured:
    """The same for the official SDK."""
    return _installation(THEIRS, OFFICIAL.python())


def _installation(name: str, python: str) -> Measured:
    packages, mebibytes = _ask(python, _INSTALLED, name)
    return {"packages": [packages], "mebibytes": [mebibytes]}


# ---- submitting ----

_SUBMIT = """
import json, sys, time
from importlib import import_module
import numpy as np

name, url, model = sys.argv[1:4]
datums, tokens, vocabulary, repeats = map(int, sys.argv[4:])
types = import_module(f"{name}.types")
service = import_module(name).ServiceClient(base_url=url, api_key="tml-local")
trainer = service.create_lora_training_client(base_model=model, rank=1)
rng = np.random.default_rng(0)

def submit():
    ids = rng.integers(0, vocabulary, (datums, tokens + 1))
    advantages = rng.standard_normal((datums, tokens), np.float32)
    logprobs = np.full(tokens, -6.0, np.float32)
    started = time.process_time()
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1].tolist()),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(row[1:]),
                "logprobs": types.TensorData.from_numpy(logprobs),
                "advantages": types.TensorData.from_numpy(advantage),
            },
        )
        for row, advantage in zip(ids, advantages)
    ]
    result = trainer.forward_backward(data, "importance_sampling").result()
    returned = [output["logprobs"].to_numpy() for output in result.loss_fn_outputs]
    seconds = time.process_time() - started
    assert [len(each) for each in returned] == [tokens] * datums
    return seconds

print(json.dumps([1e3 * submit() for _ in range(repeats + 1)][1:]))
"""


def our_submission(job: Job) -> Measured:
    """Milliseconds of CPU time from numpy arrays to a forward_backward's logprobs as numpy arrays."""
    return _submission(OURS, sys.executable, job)


def official_submission(job: Job) -> Measured:
    """The same for the official SDK, against the same server."""
    return _submission(THEIRS, OFFICIAL.python(), job)


def _submission(name: str, python: str, job: Job) -> Measured:
    url, model = _server(job.work.tokens)
    sizes = (job.work.groups, job.work.tokens, _VOCABULARY, job.repeats)
    return {"cpu_milliseconds": _ask(python, _SUBMIT, name, url, model, *map(str, sizes))}


@cache
def _server(longest: int) -> tuple[str, str]:
    """URL and model of a server whose passes cost next to nothing. It ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    scratch = Path(stack.enter_context(TemporaryDirectory()))
    model = _smallest_model(scratch / "model", longest)
    return stack.enter_context(running_server([model], scratch / "data", scratch / "server.log")), model


def _smallest_model(folder: Path, longest: int) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=2 * longest,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = WordLevel({str(token): token for token in range(_VOCABULARY)}, unk_token="0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    return str(folder)


def _ask(python: str, program: str, *arguments: str) -> Any:
    """What the program prints last, as JSON, in a fresh interpreter."""
    # -P: not from the working directory.
    done = subprocess.run([python, "-P", "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])
