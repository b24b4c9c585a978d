"""TensorData: a numpy array as the wire sees it, dense or sparse (CSR).

Knows nothing about losses or tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinkerlite.errors import InvalidTensor

if TYPE_CHECKING:
    import torch

TensorDtype = Literal["int64", "float32"]

_NUMPY_DTYPES: dict[str, type[np.generic]] = {"int64": np.int64, "float32": np.float32}


class TensorData:
    """An array of dtype int64 or float32, with the names of the `tinker` SDK.

    Dense by default. With `sparse_crow_indices` and `sparse_col_indices` it is a
    two-dimensional CSR matrix: `data` then holds the listed values only, and `shape`
    says how large the matrix is.

    Args:
        data: an array or a (nested or flat) list of numbers.
        dtype: "int64" or "float32"; read off the array when absent.
        shape: needed when `data` is flat but the tensor is not, and for CSR.

    Raises:
        InvalidTensor: ragged lists, other dtypes, a shape that does not fit, or CSR
            indices that contradict each other.
    """

    __slots__ = ("_array", "_shape", "col_indices", "crow_indices", "dtype")

    def __init__(
        self,
        data: Any = None,
        dtype: TensorDtype | None = None,
        shape: list[int] | None = None,
        sparse_crow_indices: list[int] | NDArray[np.int64] | None = None,
        sparse_col_indices: list[int] | NDArray[np.int64] | None = None,
    ) -> None:
        array = _as_array([] if data is None else data, dtype)
        self.dtype: TensorDtype = "int64" if array.dtype == np.int64 else "float32"
        self.crow_indices: NDArray[np.int64] | None = None
        self.col_indices: NDArray[np.int64] | None = None
        if sparse_crow_indices is not None or sparse_col_indices is not None:
            if sparse_crow_indices is None or sparse_col_indices is None or shape is None:
                raise InvalidTensor("a CSR tensor needs crow indices, column indices and a shape")
            self.crow_indices = _as_array(sparse_crow_indices, "int64")
            self.col_indices = _as_array(sparse_col_indices, "int64")
            array = array.reshape(-1)
            _check_csr(array, self.crow_indices, self.col_indices, shape)
            self._shape = tuple(shape)
        else:
            if shape is not None and tuple(shape) != array.shape:
                if math.prod(shape) != array.size or min(shape, default=0) < 0:
                    raise InvalidTensor(f"{array.size} values do not fill shape {list(shape)}")
                try:
                    array = array.reshape(shape)
                except ValueError as error:  # of more dimensions, or larger ones, than arrays have
                    raise InvalidTensor(f"{list(shape)} is no shape of an array: {error}") from error
            self._shape = array.shape
        self._array = array

    @classmethod
    def from_numpy(cls, array: NDArray[Any]) -> TensorData:
        """Wrap an array; floats become float32 and integers int64."""
        return cls(array)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """Copy a torch tensor of any float or integer dtype."""
        detached = tensor.detach().to("cpu", copy=True)
        return cls((detached.float() if detached.is_floating_point() else detached).numpy())

    @classmethod
    def from_torch_sparse(cls, tensor: torch.Tensor, pad_value: int = 0) -> TensorData:
        """Copy a torch tensor, in CSR form if it is a matrix and smaller that way."""
        dense = cls.from_torch(tensor)
        if len(dense.shape) != 2:
            return dense
        sparse = dense.to_csr(pad_value)
        cells = dense.shape[0] * dense.shape[1]
        return sparse if dense.shape[0] + 1 + 2 * sparse.values.size < cells else dense

    @property
    def shape(self) -> list[int]:
        """The dense shape."""
        return list(self._shape)

    @property
    def is_sparse(self) -> bool:
        """Whether the values are listed in CSR form."""
        return self.crow_indices is not None

    @property
    def sparse_crow_indices(self) -> list[int] | None:
        """Where each row of a CSR matrix begins among the values, and where the last ends."""
        return None if self.crow_indices is None else self.crow_indices.tolist()

    @property
    def sparse_col_indices(self) -> list[int] | None:
        """The column of each value of a CSR matrix."""
        return None if self.col_indices is None else self.col_indices.tolist()

    @property
    def values(self) -> NDArray[Any]:
        """The stored values without a copy: the dense array, or the listed CSR values."""
        return self._array

    @property
    def data(self) -> list[Any]:
        """The stored values as a flat list."""
        return self._array.reshape(-1).tolist()

    def to_numpy(self, pad_value: int = 0) -> NDArray[Any]:
        """The dense array; cells that a CSR tensor does not list hold `pad_value`."""
        if self.crow_indices is None or self.col_indices is None:
            return self._array
        dense = np.full(self._shape, pad_value, dtype=self._array.dtype)
        rows = np.repeat(np.arange(self._shape[0]), np.diff(self.crow_indices))
        dense[rows, self.col_indices] = self._array
        return dense

    def to_torch(self, pad_value: int = 0) -> torch.Tensor:
        """The dense array as a torch tensor (torch must be installed)."""
        import torch

        return torch.tensor(self.to_numpy(pad_value))

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """The dense array as nested lists."""
        return self.to_numpy(pad_value).tolist()

    def to_csr(self, pad_value: int = 0) -> TensorData:
        """This matrix in CSR form, listing only the cells that differ from `pad_value`."""
        dense = self.to_numpy(pad_value)
        if dense.ndim != 2:
            raise InvalidTensor(f"only matrices have a CSR form, this tensor has {dense.ndim} dimensions")
        listed = dense != pad_value
        crow = np.concatenate([[0], np.cumsum(listed.sum(axis=1))])
        return TensorData(dense[listed], self.dtype, list(dense.shape), crow, np.nonzero(listed)[1])

    def __len__(self) -> int:
        return self._shape[0] if self._shape else 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return self.dtype == other.dtype and np.array_equal(self.to_numpy(), other.to_numpy())

    __hash__ = None  # type: ignore[assignment]  # arrays are mutable

    def __repr__(self) -> str:
        form = "csr " if self.is_sparse else ""
        return f"TensorData({form}{self.dtype}{self.shape})"


def _as_array(data: Any, dtype: TensorDtype | None) -> NDArray[Any]:
    if dtype is not None and dtype not in _NUMPY_DTYPES:
        raise InvalidTensor(f"dtype {dtype!r} is not one of {sorted(_NUMPY_DTYPES)}")
    try:
        array = np.asarray(data)
        if dtype is None:
            dtype = "float32" if array.dtype.kind == "f" else "int64"
        if array.size and array.dtype.kind not in "fiub":
            raise InvalidTensor(f"values of type {array.dtype} are not numbers")
        if dtype == "int64" and array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            raise InvalidTensor("float values cannot become int64 without loss")
        return np.ascontiguousarray(array, dtype=_NUMPY_DTYPES[dtype])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidTensor(f"not a rectangular array of numbers: {error}") from error


def _check_csr(
    values: NDArray[Any], crow: NDArray[np.int64], cols: NDArray[np.int64], shape: list[int]
) -> None:
    if len(shape) != 2 or min(shape) < 0:
        raise InvalidTensor(f"a CSR tensor has two dimensions, not shape {list(shape)}")
    rows, columns = shape
    if crow.shape != (rows + 1,) or crow[0] != 0 or crow[-1] != values.size or np.any(np.diff(crow) < 0):
        raise InvalidTensor(f"CSR row pointers must be {rows + 1} rising numbers from 0 to {values.size}")
    if cols.shape != values.shape or np.any((cols < 0) | (cols >= columns)):
        raise InvalidTensor(f"CSR column indices must be {values.size} numbers in 0..{columns - 1}")
