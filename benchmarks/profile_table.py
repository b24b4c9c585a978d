"""What a profile found, as a table: its parts by the time that each takes itself, and what they leave."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 14
"""Parts in a table; the others are one line."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of thing that takes time."""

    name: str
    calls: int
    seconds: float
    """In itself, without the parts that it calls."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a piece of work spent its time on."""

    kind: str
    """Of the parts, as in "operation"."""
    seconds: float
    """On the clock."""
    parts: tuple[Part, ...]
    """Longest first."""

    def table(self) -> str:
        """As Markdown."""
        lines = [f"| {self.kind} | calls | ms | share |", "|---|---|---|---|"]
        shown, others = self.parts[:SHOWN], self.parts[SHOWN:]
        for each in shown:
            lines.append(self._line(f"`{each.name}`", each.calls, each.seconds))
        calls, seconds = sum(each.calls for each in others), sum(each.seconds for each in others)
        lines.append(self._line(f"{len(others)} others", calls, seconds))
        within = sum(each.seconds for each in self.parts)
        lines.append(self._line(f"outside of any {self.kind}", 0, self.seconds - within))
        lines.append(self._line("on the clock", 0, self.seconds))
        return "\n".join(lines)

    def _line(self, name: str, calls: int, seconds: float) -> str:
        return f"| {name} | {calls or ''} | {1e3 * seconds:.1f} | {seconds / self.seconds:.0%} |"
