"""The last lines of a running installation: written by its thread, drawn by the panel."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

KEPT = 200


class Log:
    """Thread-safe lines; every line also goes to a file, which keeps them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Forget the lines of the run before and begin its file anew."""
        with self._lock:
            self._lines.clear()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")

    def write(self, line: str) -> None:
        """Add one line."""
        with self._lock:
            self._lines.append(line)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def tail(self, count: int) -> list[str]:
        """Return the last `count` lines."""
        with self._lock:
            return list(self._lines)[-count:]


def last_lines(path: Path, count: int, limit: int = 20000) -> list[str]:
    """Return the last lines of a file (of its last `limit` bytes); none if there is no such file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - limit))
        text = file.read().decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-count:]
