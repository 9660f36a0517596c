"""What came of a batch: one row per photo, as summary.json and summary.csv in the output folder and as text for people."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from portrait_backend import __version__
from portrait_backend.batch.plan import Item
from portrait_backend.batch.worker import Outcome
from portrait_backend.files import atomic_path
from portrait_backend.job_folder import APPLICATION

JSON, CSV = "summary.json", "summary.csv"
FORMAT = 1
STATES = ("completed", "skipped", "failed", "cancelled", "waiting")
"""waiting: its turn never came."""
COLUMNS = ("index", "photo", "name", "state", "seconds", "sha256", "code", "message", "hint", "warnings")


@dataclass(frozen=True)
class Summary:
    """A batch that has ended or was interrupted."""

    output: Path
    items: Sequence[Item]
    outcomes: Mapping[int, Outcome]
    started: datetime
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """How many photos are in each state, those with none left out."""
        found = Counter(row["state"] for row in self.rows())
        return {state: found[state] for state in STATES if found[state]}

    @property
    def complete(self) -> bool:
        """Whether every head lies there."""
        return self.counts.keys() <= {"completed", "skipped"}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per photo, in order."""
        return [_row(item, self.outcomes.get(item.index)) for item in self.items]

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of summary.json."""
        return {
            "application": APPLICATION,
            "format": FORMAT,
            "generator": f"portrait-diffusion {__version__}",
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "counts": self.counts,
            "photos": self.rows(),
        }

    def write(self) -> None:
        """Write summary.json and summary.csv; earlier ones are replaced."""
        with atomic_path(self.output / JSON) as path:
            text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8", errors="replace")
        with atomic_path(self.output / CSV) as path:
            path.write_text(self.as_csv(), encoding="utf-8", errors="replace", newline="")

    def as_csv(self) -> str:
        """Return the contents of summary.csv."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows():
            cells = {**row, **row.get("error", {}), "warnings": "; ".join(row["warnings"])}
            writer.writerow([_cell(cells.get(column, "")) for column in COLUMNS])
        return buffer.getvalue()

    def sentence(self) -> str:
        """Return the counts in words: "5 heads: 3 completed, 1 skipped, 1 failed"."""
        heads = f"{len(self.items)} head{'' if len(self.items) == 1 else 's'}"
        return f"{heads}: {', '.join(f'{count} {state}' for state, count in self.counts.items())}"


def _row(item: Item, outcome: Outcome | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": item.index,
        "photo": str(item.photo),
        "name": item.name,
        "state": outcome.state if outcome else "waiting",
        "seconds": round(outcome.seconds, 2) if outcome else 0.0,
        "sha256": outcome.sha256 if outcome else "",
        "warnings": list(outcome.warnings) if outcome else [],
    }
    return {**found, "error": outcome.error} if outcome and outcome.error else found


def _cell(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: a photo's name may start like one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
