"""ModelInput: what a model reads, as a list of chunks.

Text is token ids; nothing here knows a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinkerlite.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class EncodedTextChunk:
    """A run of token ids."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        """How many tokens."""
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class ImageChunk:
    """An image, for backends with vision models; the reference server is text only."""

    data: bytes
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image"] = "image"

    @property
    def length(self) -> int:
        """How many tokens the caller expects it to take.

        Raises:
            InvalidInput: only the server knows, and the caller named no number.
        """
        if self.expected_tokens is None:
            raise InvalidInput("the length of an image is known to the server only; set expected_tokens")
        return self.expected_tokens


ModelInputChunk = EncodedTextChunk | ImageChunk


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """A prompt or a training sequence: chunks, in order. Adjacent text simply concatenates."""

    chunks: list[ModelInputChunk] = field(default_factory=lambda: [])

    @classmethod
    def from_ints(cls, tokens: Sequence[int] | NDArray[np.integer]) -> ModelInput:
        """One text chunk of these token ids."""
        ids = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
        return cls(chunks=[EncodedTextChunk(tokens=ids)])

    @classmethod
    def empty(cls) -> ModelInput:
        """No chunks."""
        return cls(chunks=[])

    @property
    def length(self) -> int:
        """Tokens in all chunks."""
        return sum(chunk.length for chunk in self.chunks)

    def to_ints(self) -> list[int]:
        """All token ids.

        Raises:
            InvalidInput: there is a chunk that is not text.
        """
        ids: list[int] = []
        for index, chunk in enumerate(self.chunks):
            if not isinstance(chunk, EncodedTextChunk):
                raise InvalidInput(f"chunk {index} is of type {chunk.type!r} and has no token ids")
            ids.extend(chunk.tokens)
        return ids

    def to_numpy(self) -> NDArray[np.int64]:
        """All token ids as int64 (N,); the same errors as `to_ints`."""
        return np.asarray(self.to_ints(), dtype=np.int64)

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """A new input with one more chunk."""
        return ModelInput(chunks=[*self.chunks, chunk])

    def append_int(self, token: int) -> ModelInput:
        """A new input with one more token."""
        return self.append(EncodedTextChunk(tokens=[token]))

    def __repr__(self) -> str:
        kinds = {chunk.type for chunk in self.chunks}
        if kinds <= {"encoded_text"}:
            ids = self.to_ints()
            shown = ", ".join(map(str, ids[:6])) + (", ..." if len(ids) > 6 else "")
            return f"ModelInput({len(ids)} tokens: [{shown}])"
        return f"ModelInput({len(self.chunks)} chunks: {sorted(kinds)})"
