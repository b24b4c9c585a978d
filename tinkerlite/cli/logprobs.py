"""`tinkerlite logprobs`: how likely each token of a text is under a base model or saved weights."""

from __future__ import annotations

from collections.abc import Sequence

from tinkerlite.cli.options import (
    add_model_option,
    add_server_options,
    command_parser,
    sampler_of,
    service_client,
)
from tinkerlite.cli.output import print_json
from tinkerlite.cli.shading import ScoredToken, print_tokens, summary
from tinkerlite.cli.text import decoded, encoded, given_text
from tinkerlite.errors import APIResponseValidationError
from tinkerlite.types import ModelInput

EXAMPLES = """\
  tinkerlite logprobs "The capital of France is Paris."
  tinkerlite logprobs - --model tinker://RUN/sampler_weights/NAME < essay.txt
  tinkerlite logprobs "two and two is four" --json

Logprobs are natural (nats), over the full vocabulary, given the tokens before. The first token has none.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = command_parser("logprobs", "Show how likely each token of a text is.", EXAMPLES)
    parser.add_argument("text", metavar="TEXT", help="the text; - reads it from standard input")
    add_model_option(parser)
    add_server_options(parser)
    options = parser.parse_args(argv)
    text = given_text(options.text)
    with service_client(options) as service:
        sampler = sampler_of(service, options.model)
        tokenizer = sampler.get_tokenizer()
        ids = encoded(tokenizer, text)
        logprobs = sampler.compute_logprobs(ModelInput.from_ints(ids)).result()
        model = options.model or sampler.get_base_model()
    if len(logprobs) != len(ids):
        message = f"the server sent {len(logprobs)} logprobs for {len(ids)} tokens"
        raise APIResponseValidationError(message=message)
    tokens = [
        ScoredToken(token, decoded(tokenizer, [token]), logprob)
        for token, logprob in zip(ids, logprobs, strict=True)
    ]
    total = summary(tokens)
    if options.json:
        listed = [{"id": token.id, "text": token.text, "logprob": token.logprob} for token in tokens]
        print_json(
            {
                "model": model,
                "tokens": listed,
                "scored_tokens": total.tokens if total else 0,
                "sum": total.sum if total else None,
                "mean": total.mean if total else None,
                "perplexity": total.perplexity if total else None,
            }
        )
        return 0
    print_tokens(tokens)
    print(total or "a single token, which nothing comes before: there is nothing to score")
    return 0
