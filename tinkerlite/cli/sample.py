"""`tinkerlite sample`: complete a prompt with a base model or saved weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from tinkerlite.cli.options import (
    add_model_option,
    add_server_options,
    command_parser,
    sampler_of,
    service_client,
)
from tinkerlite.cli.output import print_json
from tinkerlite.cli.shading import ScoredToken, print_tokens, summary
from tinkerlite.cli.text import as_user_turn, decoded, encoded, given_text, visible
from tinkerlite.tokenizers import Tokenizer
from tinkerlite.types import ModelInput, SampledSequence, SamplingParams

EXAMPLES = """\
  tinkerlite sample "The capital of France is" --max-tokens 8 --temperature 0
  tinkerlite sample --chat "Write a haiku about gradients." --model NAME -n 3 --seed 1
  tinkerlite sample "def add(a, b):" --model tinker://RUN/sampler_weights/NAME --stop "def"
  cat prompt.txt | tinkerlite sample - --logprobs --json

Text is what the model continues, as it stands; --chat lays it out as a user's turn first. Logprobs are
of temperature 1 whatever --temperature is.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    params = _sampling_params(parser, options)
    text = given_text(options.prompt)
    with service_client(options) as service:
        sampler = sampler_of(service, options.model)
        tokenizer = sampler.get_tokenizer()
        prompt = as_user_turn(tokenizer, text) if options.chat else encoded(tokenizer, text)
        response = sampler.sample(ModelInput.from_ints(prompt), options.n, params).result()
        model = options.model or sampler.get_base_model()
    if options.json:
        sequences = [_as_json(tokenizer, sequence) for sequence in response.sequences]
        print_json({"model": model, "prompt": text, "prompt_tokens": prompt, "sequences": sequences})
        return 0
    for index, sequence in enumerate(response.sequences):
        if len(response.sequences) > 1:
            print(f"{'' if index == 0 else chr(10)}[{index + 1}/{len(response.sequences)}]")
        _print(tokenizer, sequence, with_logprobs=options.logprobs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample", "Complete a prompt with a base model or saved weights.", EXAMPLES)
    add = parser.add_argument
    add("prompt", metavar="TEXT", help="the prompt; - reads it from standard input")
    add_model_option(parser)
    add("--chat", action="store_true", help="lay the text out as a user's turn, by the model's chat template")
    add("--max-tokens", type=int, default=256, metavar="N", help="longest completion (default: %(default)s)")
    add("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy (default: 1)")
    add("--top-p", type=float, default=1.0, metavar="X", help="draw among the likeliest X of the probability")
    add("--top-k", type=int, default=-1, metavar="N", help="draw among the N likeliest tokens")
    add("--seed", type=int, metavar="N", help="draw the same again")
    add("-n", type=int, default=1, metavar="N", help="how many completions (default: 1)")
    add("--stop", action="append", metavar="TEXT", help="end after this text; may be repeated")
    add("--logprobs", action="store_true", help="show each token's logprob, the unlikely ones shaded")
    add_server_options(parser)
    return parser


def _sampling_params(parser: argparse.ArgumentParser, options: argparse.Namespace) -> SamplingParams:
    """The options as the protocol takes them; what it does not take is a usage error."""
    if options.n < 1:
        parser.error(f"argument -n: {options.n} is not a number of completions")
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
    try:
        return SamplingParams(**{name: getattr(options, name) for name in names})
    except ValidationError as error:
        problem = error.errors()[0]
        flag = str(problem["loc"][0]).replace("_", "-")
        parser.error(f"argument --{flag}: {problem['msg']}, not {problem['input']!r}")


def _as_json(tokenizer: Tokenizer, sequence: SampledSequence) -> dict[str, object]:
    return {
        "text": decoded(tokenizer, sequence.tokens, plain=True),
        "stop_reason": sequence.stop_reason,
        "tokens": sequence.tokens,
        "logprobs": sequence.logprobs,
    }


def _print(tokenizer: Tokenizer, sequence: SampledSequence, *, with_logprobs: bool) -> None:
    if not with_logprobs:
        text = decoded(tokenizer, sequence.tokens, plain=True)
        print(visible(text) if sys.stdout.isatty() else text)
        return
    logprobs = sequence.logprobs or [None] * len(sequence.tokens)
    tokens = [
        ScoredToken(token, decoded(tokenizer, [token]), logprob)
        for token, logprob in zip(sequence.tokens, logprobs, strict=True)
    ]
    print_tokens(tokens)
    print(summary(tokens) or "the server sent no logprobs")
