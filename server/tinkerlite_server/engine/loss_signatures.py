"""What an operation of a custom loss may be given: the names of its parameters, and how many it needs.

Signatures are written as `input dim? keepdim? | dtype?`: positional parameters, `?` where one may
be left out, `*` for any number, `/` between names of one parameter, and after `|` those that are
given by name alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Room = Callable[[Sequence[Any], Mapping[str, Any]], int]
"""How many values an operation makes at most, from its arguments."""


@dataclass(frozen=True)
class Operation:
    """A function that a graph may name, and what it may be given."""

    call: Callable[..., Any]
    positional: tuple[frozenset[str], ...]
    """The names of each positional parameter."""
    required: int
    variadic: bool
    """Whether the last positional parameter stands for any number."""
    keywords: frozenset[str]
    makes_tensor: bool = False
    """Makes a tensor out of numbers, so it must be told the device."""
    multiplies: bool = False
    """A product of matrices: more work than its result is large."""
    pairs: bool = False
    """Works on whatever its tensors broadcast to, however small its result is."""
    room: Room | None = None
    """Set where the size of the result depends on values, not on shapes alone."""

    def parameter(self, position: int) -> frozenset[str]:
        """The names of the parameter that the argument at a position is for; none if there is no such."""
        if position < len(self.positional):
            return self.positional[position]
        return self.positional[-1] if self.variadic else frozenset()

    def problem(self, count: int, names: Iterable[str]) -> str | None:
        """What is wrong with a call of so many positional arguments and these names; None if nothing."""
        names = {ALIASES.get(name, name) for name in names}
        most = len(self.positional)
        if count > most and not self.variadic:
            return f"takes at most {most} positional arguments, and has {count}"
        by_name = frozenset().union(*self.positional[count:]) | self.keywords
        if unknown := sorted(names - by_name):
            return f"has no parameter {unknown[0]!r}, or it was given by position as well"
        missing = [each for each in self.positional[count : self.required] if not each & names]
        if missing:
            return f"lacks its argument {'/'.join(sorted(missing[0]))!r}"
        return None


ALIASES = {"axis": "dim", "keepdims": "keepdim"}
"""NumPy's names, which torch understands too."""


def operation(signature: str, call: Callable[..., Any], **options: Any) -> Operation:
    """The operation of a signature; `options` are fields of `Operation`."""
    before, _, after = signature.partition("|")
    parameters = before.split()
    names = tuple(frozenset(each.strip("*?").split("/")) for each in parameters)
    needed = [not each.endswith("?") and not each.startswith("*") for each in parameters]
    return Operation(
        call,
        names,
        required=sum(needed),
        variadic=any(each.startswith("*") for each in parameters),
        keywords=frozenset(each.strip("?") for each in after.split()),
        **options,
    )
