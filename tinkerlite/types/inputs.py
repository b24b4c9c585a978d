"""ModelInput: what a model reads, as a list of chunks.

Text is token ids; nothing here knows a tokenizer.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.functional_validators import BeforeValidator

from tinkerlite.errors import InvalidInput

MAX_TOKEN_ID = 2**31 - 1


def _from_base64(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Base64Bytes = Annotated[bytes, BeforeValidator(_from_base64), PlainSerializer(_to_base64)]
"""Bytes that are base64 in JSON."""


class Params(BaseModel):
    """Base of what a user fills in: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenIds(Sequence[int]):
    """Token ids in an array, to be read as a list of them would be. It is a copy, and stays as it is.

    So that ids which come in arrays, and leave as bytes, never become a list in between.
    """

    __slots__ = ("array",)

    def __init__(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        self.array: NDArray[np.int64] = np.array(ids, dtype=np.int64)
        self.array.flags.writeable = False

    def __len__(self) -> int:
        return self.array.size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.array[index].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def __add__(self, other: Sequence[int]) -> list[int]:
        return [*self, *other]

    def __radd__(self, other: Sequence[int]) -> list[int]:
        return [*other, *self]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return np.array_equal(self.array, other.array)
        return self.array.tolist() == other

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    def __repr__(self) -> str:
        return repr(self.array.tolist())


def _to_list(tokens: Sequence[int]) -> list[int]:
    return list(tokens)


def _no_text(tokens: object) -> object:
    """Pydantic reads digits in text as numbers, and a text of digits is no list of token ids."""
    if isinstance(tokens, Sequence) and str in map(type, cast("Sequence[object]", tokens)):
        raise ValueError("token ids are whole numbers, and here is text; encode it with a tokenizer")
    return cast("object", tokens)


def _as_int64(tokens: Sequence[int]) -> NDArray[np.int64]:
    """In half of the time that `np.fromiter` takes. Raises struct.error where one is no such number."""
    return np.frombuffer(struct.pack(f"={len(tokens)}q", *tokens), np.int64)


class EncodedTextChunk(Params):
    """A run of token ids."""

    tokens: Annotated[Sequence[int], BeforeValidator(_no_text), PlainSerializer(_to_list)]
    type: Literal["encoded_text"] = "encoded_text"

    @classmethod
    def from_numpy(cls, ids: NDArray[Any]) -> EncodedTextChunk:
        """A chunk of an array of integers, (N,). Any other array is what a list of its numbers would be."""
        if ids.ndim == 1 and np.can_cast(ids.dtype, np.int64):
            return cls.model_construct(tokens=TokenIds(ids))
        return cls(tokens=ids.tolist())

    @property
    def length(self) -> int:
        """How many tokens."""
        return len(self.tokens)

    def to_numpy(self) -> NDArray[np.int64]:
        """The ids as int64 (N,), not to be written to.

        Raises:
            InvalidInput: one is too large for that.
        """
        if isinstance(self.tokens, TokenIds):
            return self.tokens.array
        try:
            return _as_int64(self.tokens)
        except struct.error as error:
            raise InvalidInput(f"a number as large as {max(self.tokens, key=abs)} is no token id") from error

    def checked_ids(self, where: str) -> NDArray[np.int64]:
        """`to_numpy`, where the ids are about to be sent.

        Raises:
            InvalidInput: one is no token id; the message begins with `where`.
        """
        try:
            ids = self.to_numpy()
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error}") from None
        if ids.size and ids.view(np.uint64).max() > MAX_TOKEN_ID:  # negative ones are large as well
            bad = int(np.argmax((ids < 0) | (ids > MAX_TOKEN_ID)))
            raise InvalidInput(f"{where}: token {bad} is {ids[bad]}, which is no token id")
        return ids


class _Image(Params):
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None

    @property
    def length(self) -> int:
        """How many tokens the caller expects it to take.

        Raises:
            InvalidInput: only the server knows, and the caller named no number.
        """
        if self.expected_tokens is None:
            raise InvalidInput("the length of an image is known to the server only; set expected_tokens")
        return self.expected_tokens


class ImageChunk(_Image):
    """An image, for backends with vision models; the reference server is text only."""

    data: Base64Bytes
    type: Literal["image"] = "image"


class ImageAssetPointerChunk(_Image):
    """An image that the server fetches itself; for sampling only."""

    location: str
    type: Literal["image_asset_pointer"] = "image_asset_pointer"


class DmelChunk(Params):
    """Audio as a serialized tensor, for backends that hear; the reference server is text only."""

    dmel: Base64Bytes
    type: Literal["dmel"] = "dmel"

    @property
    def length(self) -> int:
        """How many tokens: the tensor's first dimension.

        Raises:
            InvalidInput: the bytes do not begin like such a tensor.
        """
        return _first_dimension(self.dmel)


def _first_dimension(tensor: bytes) -> int:
    """Read the header: a mark if all values are equal, the dtype, the rank, and each size as a varint."""
    position = 1 if tensor[:1] == b"\xfe" else 0
    numbers: list[int] = []
    number, shift = 0, 0
    for byte in tensor[position + 1 :]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number, shift = 0, 0
        if len(numbers) == 2 or shift > 63:
            break
    if len(numbers) < 2 or numbers[0] < 1:
        raise InvalidInput("the bytes of a dmel chunk do not begin with the header of a tensor")
    return numbers[1]


ModelInputChunk = Annotated[
    EncodedTextChunk | ImageAssetPointerChunk | ImageChunk | DmelChunk, Field(discriminator="type")
]


class ModelInput(Params):
    """A prompt or a training sequence: chunks, in order. Adjacent text simply concatenates."""

    chunks: list[ModelInputChunk]

    @classmethod
    def from_ints(cls, tokens: Sequence[int] | NDArray[np.integer]) -> ModelInput:
        """One text chunk of these token ids."""
        if isinstance(tokens, np.ndarray):
            chunk = EncodedTextChunk.from_numpy(tokens)
        else:
            ids = list(tokens)
            try:  # whole numbers, as `int`: what pydantic makes sure of one by one, in thrice the time
                chunk = EncodedTextChunk.model_construct(tokens=_as_int64(ids).tolist())
            except struct.error:
                chunk = EncodedTextChunk(tokens=ids)
        return cls.model_construct(chunks=[chunk])

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
        return [token for chunk in self._texts() for token in chunk.tokens]

    def to_numpy(self) -> NDArray[np.int64]:
        """All token ids as int64 (N,), a copy; errors as of `to_ints` and of a chunk."""
        return np.concatenate([np.zeros(0, np.int64), *(chunk.to_numpy() for chunk in self._texts())])

    def _texts(self) -> list[EncodedTextChunk]:
        texts: list[EncodedTextChunk] = []
        for index, chunk in enumerate(self.chunks):
            if not isinstance(chunk, EncodedTextChunk):
                raise InvalidInput(f"chunk {index} is of type {chunk.type!r} and has no token ids")
            texts.append(chunk)
        return texts

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

    __str__ = __repr__
