"""Progress for people: plain lines are few and tell the time left; bars finish."""

from __future__ import annotations

import io

import pytest

from portrait_backend.cli import console
from portrait_backend.context import Progress


def test_plain_lines_are_throttled_and_tell_the_time_left() -> None:
    now, lines = [100.0], list[str]()
    report = console.PlainProgress(lines.append, lambda: now[0])
    with report:
        for step in range(41):
            report(Progress("prior", step, 40))
            now[0] += 0.5
        report(Progress("mesh", 0, 2))
        report(Progress("mesh", 2, 2))
    assert lines == [
        "prior: started",
        "prior: 10/40, 15 s left",
        "prior: 20/40, 10 s left",
        "prior: 30/40, 5 s left",
        "prior: 40/40",
        "mesh: started",
        "mesh: 2/2",
    ]


def test_no_bars_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(console.progress_report(as_json=False), console.PlainProgress)


def test_bars_on_a_terminal_but_not_with_json(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert isinstance(console.progress_report(as_json=True), console.PlainProgress)
    with console.progress_report(as_json=False) as report:
        report(Progress("prior", 3, 40))
        report(Progress("mesh", 1, 2))
    text = terminal.getvalue()
    assert "prior" in text and "40/40" in text and "mesh" in text and "1/2" in text
