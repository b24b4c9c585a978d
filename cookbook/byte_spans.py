"""Byte spans: a teacher with another tokenizer.

Student and teacher cut one text into different tokens, so their tokens cannot be compared one by one.
But where both have a border at the same byte, the text between two such borders can be:

    student   | The | capi | tal |  of |        spans   The / capital /  of
    teacher   | The |  capital   | ␣ | of |

    kl of a span = sum of log p_student of its tokens - sum of log p_teacher of its tokens

The tokens of a span share its KL equally, so that sums over a completion are right, and a span of one
token on either side is an ordinary token. What is approximate:

- A student token in a span of n answers for 1/n of the span, not for what follows it in the span: the
  gradient of that span's KL has the right sign and an n-th of its size.
- p_teacher of a text is a sum over all ways to cut it into tokens; this is the usual way alone, which
  is nearly all of it, and always a little less.
- The last token of a completion that was cut off at the limit may be one that the teacher would have
  continued; its span looks less likely than it is.
- The teacher has no opinion, so kl = 0, from the first thing on that it cannot be shown as the student
  wrote it: bytes that are no character, a special token inside the reply, text that its tokenizer
  rewrites. The token that ends a reply stands for the one that ends the teacher's.

Exact where their tokens agree: with equal tokenizers this is `Teacher`, number for number, for replies that
are cut into tokens as the tokenizer would cut their text. Of another cut the usual one is scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cookbook.contexts import Context
from cookbook.datums import Floats
from cookbook.renderers import Renderer, Tokenizer
from cookbook.rollouts import Group, Problem, Trajectory
from cookbook.teachers import VocabularyMismatch, completion_logprobs
from cookbook.work import Work, scoring, total
from tinkerlite import APIFuture, SamplingClient
from tinkerlite.types import ModelInput, SampleResponse, SamplingParams

PROBES = ("The capital of France is Paris.", " two  blanks\n", "naïve 東京 🙂", "x = 12345 # y")
"""Texts that a tokenizer must spell byte by byte to be compared with another."""


@dataclass(frozen=True)
class Span:
    """Tokens of both sides that spell the same bytes."""

    student: range
    teacher: range


def spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span]:
    """The smallest spans of bytes at whose ends both sides have a border, as far as the texts agree.

    Args:
        student: what each token spells; none is empty.
        teacher: likewise.
    """
    student_ends, teacher_ends = _ends(student), _ends(teacher)
    agreed = _agreed(b"".join(student), b"".join(teacher))
    found: list[Span] = []
    ours = theirs = 0
    for end in sorted(student_ends.keys() & teacher_ends.keys()):
        if end > agreed:
            break
        found.append(Span(range(ours, student_ends[end]), range(theirs, teacher_ends[end])))
        ours, theirs = student_ends[end], teacher_ends[end]
    return found


class TokenBytes:
    """What each token of a tokenizer spells.

    Raises:
        VocabularyMismatch: its tokens do not spell its texts: blanks are added or dropped, or letters
            rewritten, so there are no borders of bytes to compare.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added = set(added)
        self._special = {token for token, form in added.items() if form.special}
        self._pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
        self._is_byte_level = all(
            character in _ALPHABET
            for token, piece in self._pieces.items()
            if token not in self._added
            for character in piece
        )
        for text in PROBES:
            if self.spell(self.encode(text)) != text.encode():
                raise VocabularyMismatch(
                    f"{text!r} is spelt {self.spell(self.encode(text))!r} by its tokens: this tokenizer "
                    "rewrites text, so it cannot be compared with another by bytes. "
                    "Choose a teacher with the student's tokenizer."
                )

    def encode(self, text: str) -> list[int]:
        """The usual tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def of(self, token: int) -> bytes:
        """The bytes of one token; an added one spells its name."""
        piece = self._pieces[token]
        if token in self._added:
            return piece.encode()
        if self._is_byte_level:
            return bytes(_ALPHABET[character] for character in piece)
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace("▁", " ").encode()

    def spell(self, tokens: Sequence[int]) -> bytes:
        """The bytes of several."""
        return b"".join(map(self.of, tokens))

    def is_special(self, token: int) -> bool:
        """Whether a token is no text, or has no meaning at all (rows that pad an embedding)."""
        return token in self._special or token not in self._pieces


@dataclass(frozen=True)
class _Translation:
    """A completion as the teacher reads it, and which of its tokens grade which of the student's."""

    tokens: list[int]
    spans: list[Span]


class ByteSpanTeacher:
    """A model of another vocabulary, whose opinion of the student's text is asked. A `Scorer`.

    Args:
        sampler: the teacher's weights.
        student: lays out the student's prompts; its tokenizer is the student's.
        teacher: lays out the teacher's prompts; its tokenizer is the teacher's.
        context: what the teacher is told instead of the problem alone (see `contexts`).

    Raises:
        VocabularyMismatch: one of the tokenizers rewrites text.
    """

    def __init__(
        self, sampler: SamplingClient, student: Renderer, teacher: Renderer, context: Context | None = None
    ) -> None:
        self._sampler = sampler
        self._student, self._teacher = student, teacher
        self._student_bytes = TokenBytes(student.tokenizer)
        self._teacher_bytes = TokenBytes(teacher.tokenizer)
        self._context = context
        self.work = Work()
        """What it has scored so far, remembered batches not counted again."""
        self._asked: dict[Group, list[tuple[_Translation, APIFuture[SampleResponse] | None]]] = {}
        self._known: dict[Group, list[Floats]] = {}

    def start(self, group: Group) -> None:
        """See `Teacher.start`."""
        if group not in self._asked and group not in self._known:
            prompt = self.prompt(group.problem)
            translations = [self._translate(trajectory) for trajectory in group.trajectories]
            self._asked[group] = [(each, self._ask(prompt, each)) for each in translations]

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p_teacher of each completion token, as its share of its span: one (T,) array per trajectory.

        What the student's own logprobs lack to it is the token's share of the span's KL.
        """
        for group in groups:
            self.start(group)
        self.work += total(self._work(group) for group in groups if group not in self._known)
        self._known = {group: self._known.get(group) or self._answers(group) for group in groups}
        self._asked.clear()
        return list(self._known.values())

    def prompt(self, problem: Problem) -> list[int]:
        """The teacher's tokens before a completion of the problem."""
        return self._teacher.generation_prompt(
            problem.messages if self._context is None else self._context(problem)
        )

    def _translate(self, trajectory: Trajectory) -> _Translation:
        ours = trajectory.completion_tokens
        ended = ours[-1] in self._student.stop_tokens
        text = self._readable(ours[:-1] if ended else ours)
        tokens = self._teacher_bytes.encode(b"".join(text).decode())
        found = spans(text, [self._teacher_bytes.of(token) for token in tokens])
        everything = (found[-1].student.stop, found[-1].teacher.stop) if found else (0, 0)
        if ended and everything == (len(ours) - 1, len(tokens)):
            found.append(Span(range(len(ours) - 1, len(ours)), range(len(tokens), len(tokens) + 1)))
            tokens = [*tokens, self._teacher.stop_tokens[0]]
        return _Translation(tokens, found)

    def _readable(self, tokens: Sequence[int]) -> list[bytes]:
        """Bytes of the tokens up to the first that is no text, and no half characters at the end."""
        no_text = (i for i, token in enumerate(tokens) if self._student_bytes.is_special(token))
        text = [self._student_bytes.of(token) for token in tokens[: next(no_text, len(tokens))]]
        while (whole := _characters(b"".join(text))) < sum(map(len, text)):
            while sum(map(len, text)) > whole:
                text.pop()
        return text

    def _ask(self, prompt: list[int], translation: _Translation) -> APIFuture[SampleResponse] | None:
        if not translation.spans:
            return None
        return self._sampler.sample(
            ModelInput.from_ints(prompt + translation.tokens),
            num_samples=1,
            sampling_params=SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
        )

    def _work(self, group: Group) -> Work:
        prompt_length = len(self.prompt(group.problem))
        return total(
            scoring(prompt_length + len(each.tokens)) for each, _ in self._asked[group] if each.spans
        )

    def _answers(self, group: Group) -> list[Floats]:
        length = len(self.prompt(group.problem))
        return [
            trajectory.logprobs
            if future is None
            else shares(trajectory.logprobs, completion_logprobs(future.result(), length), translation.spans)
            for (translation, future), trajectory in zip(self._asked[group], group.trajectories, strict=True)
        ]


def shares(student: Floats, teacher: Floats, found: Sequence[Span]) -> Floats:
    """The student's logprobs less each token's share of its span's KL; unchanged outside of spans."""
    scores = student.astype(np.float64)
    for span in found:
        ours, theirs = list(span.student), list(span.teacher)
        kl = student[ours].sum(dtype=np.float64) - teacher[theirs].sum(dtype=np.float64)
        scores[ours] -= kl / len(ours)
    return scores.astype(np.float32)


def _ends(pieces: Sequence[bytes]) -> dict[int, int]:
    """Byte offsets at which a token ends, with the number of tokens up to there."""
    return {int(end): number for number, end in enumerate(np.cumsum([len(piece) for piece in pieces]), 1)}


def _agreed(first: bytes, second: bytes) -> int:
    """How many bytes two texts have in common before they differ."""
    if first == second:
        return len(first)
    differences = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def _characters(spelt: bytes) -> int:
    """How many of the bytes are whole characters, up to the first that is not."""
    try:
        spelt.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(spelt)


_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies of characters spell a single byte."""


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies spell bytes: themselves where they can be seen,
    else the next free ones from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()
