"""What a loader chose, as a table when printed and like a dict when asked: report["dtype"], dict(report)."""

from __future__ import annotations

from typing import Any


class Report:
    """Base of the loaders' reports: dataclasses whose fields include `parameters` (a count) and `memory_mb` (10^6 bytes)."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Field names, so that dict(report) works."""
        return list(vars(self))

    def __str__(self) -> str:
        rows = vars(self) | {"parameters": f"{self['parameters']:,}", "memory_mb": f"{self['memory_mb']:,.1f}"}
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}} {value}" for name, value in rows.items())
