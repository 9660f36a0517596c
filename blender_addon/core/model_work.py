"""Work on the backend's models, done by the backend's own program: `portrait_backend models download | verify | convert | remove`.

The program does everything that matters (licence, space, resuming, checksums, atomic installation); this module starts it, reads its
JSON progress and its JSON answer, and says both in the panel's words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from portrait_shared.errors import PortraitDiffusionError

from .folders import Folders
from .jobs import time_left
from .log import Log
from .process import Launch
from .task import Task

Action = Literal["download", "verify", "convert", "remove"]

DOING: dict[str, str] = {"download": "Downloading", "verify": "Checking", "convert": "Converting", "remove": "Removing"}
ETA_AFTER = 3.0
"""Seconds of transfer before its speed says anything."""
AGAIN = "Download again: it goes on where it stopped"
HINTS = {
    "download-failed": f"{AGAIN}. Without internet, get the files elsewhere and use From Folder",
    "disk-full": f"Free space. {AGAIN}",
    "output-not-writable": "Make the folder writable, or name another one in the environment variable PORTRAIT_DIFFUSION_MODELS",
    "licence-not-accepted": "Read it, and tick that you accept it",
    "model-missing": "Refresh the list",
}
"""What to do, for those errors whose own words speak of the command line."""


@dataclass(frozen=True)
class Transfer:
    """How far the program is: what it does ("fetching", "checking"), with which file, bytes done and in all (0: unknown)."""

    step: str
    file: str
    done: int
    total: int


class ModelWork(Task):
    """One piece of work on one model at a time. `model`, `action`; while it runs `transfer`; after it `outcome` or `error`."""

    def __init__(self, folders: Folders, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(log)
        self.folders = folders
        self.model = ""
        self.action: Action = "download"
        self.outcome = ""
        self.transfer: Transfer | None = None
        self._mirror: Path | None = None
        self._clock = clock
        self._began: tuple[str, float, int] = ("", 0.0, 0)
        self._news = False

    def start(self, program: Launch, action: Action, model: str, accepted: bool = False, mirror: Path | None = None) -> None:
        """Begin; PortraitDiffusionError ``download-running`` or, for a download, ``licence-not-accepted``."""
        if self.running:
            raise PortraitDiffusionError("download-running", f"{self.model} is being worked on", "Wait for it, or cancel it", True)
        if action == "download" and not accepted:
            what = f"the licence of {model} was not accepted"
            raise PortraitDiffusionError("licence-not-accepted", what, HINTS["licence-not-accepted"])
        self.model, self.action, self.outcome, self.transfer, self._mirror = model, action, "", None, mirror
        self._began = ("", 0.0, 0)
        self._news = True
        command = program.command(*arguments(action, model, accepted, mirror))
        self.begin(lambda: self._work(command, program.environment), "portrait-models")

    def ended(self) -> bool:
        """Return True once after the end of the work: the list of models may have changed."""
        if self.running or not self._news:
            return False
        self._news = False
        return True

    def dismiss(self) -> None:
        """Forget how the last work ended."""
        if not self.running:
            self.model, self.outcome, self.error, self.transfer = "", "", None, None

    @property
    def fraction(self) -> float:
        """How much of the present step is done, 0 to 1; 0 where it isn't known."""
        now = self.transfer
        return min(now.done / now.total, 1.0) if now is not None and now.total else 0.0

    @property
    def title(self) -> str:
        """What is done now, in one or two words."""
        if self.cancelled:
            return "Cancelling"
        if self.transfer is not None and self.transfer.step == "checking":
            return "Checking"
        return "Copying" if self.action == "download" and self._mirror is not None else DOING[self.action]

    @property
    def amount(self) -> str:
        """How much is done and how long the rest takes: "1.2 of 4.3 GB, about 3 min left"; "" where it isn't known."""
        now = self.transfer
        if now is None or not now.total:
            return ""
        text = f"{size_text(now.done, now.total)} of {size_text(now.total)}"
        step, since, at = self._began
        seconds, moved = self._clock() - since, now.done - at
        if step == now.step and seconds > ETA_AFTER and moved > 0 and now.done < now.total:
            text += f", {time_left((now.total - now.done) / moved * seconds)}"
        return text

    def stopped(self) -> PortraitDiffusionError:
        """Return the error of work that was cancelled."""
        hint = AGAIN if self.action == "download" else "Nothing was changed"
        return PortraitDiffusionError("cancelled", f"{DOING[self.action]} {self.model} was cancelled", hint, retryable=True)

    def failed(self, error: OSError) -> PortraitDiffusionError:
        """Return the error of work that the operating system stopped."""
        what = f"the backend's program can't be run: {error.strerror or error} ({error.filename or 'no file'})"
        return PortraitDiffusionError("models-failed", what, "Repair the backend in the preferences")

    def _work(self, command: list[str], environment: dict[str, str]) -> None:
        said: list[str] = []
        self.folders.data.mkdir(parents=True, exist_ok=True)
        self.log.start()
        self.log.write(" ".join(command))
        code = self.call(command, lambda line: self._read(line, said), environment=environment, folder=self.folders.data)
        self.outcome = self._judge(code, answer(said), said)

    def _read(self, line: str, said: list[str]) -> None:
        transfer = read_transfer(line)
        if transfer is None:
            said.append(line)
            self.log.write(line)
            return
        if transfer.step != self._began[0]:
            self._began = (transfer.step, self._clock(), transfer.done)
        self.transfer = transfer

    def _judge(self, code: int, answered: dict[str, Any] | None, said: list[str]) -> str:
        """Return one line about success, or raise what went wrong."""
        if answered is None:
            last = next((line for line in reversed(said) if line.strip()), f"exit code {code}").rstrip(".")
            what = f"the backend's program ended without an answer: {last}"
            raise PortraitDiffusionError("models-failed", what, f"All it printed is in {self.log.path}", True)
        if "code" in answered:
            raise told(answered)
        if self.action == "verify":
            bad = [check["path"] for checks in answered["models"].values() for check in checks if check["state"] != "ok"]
            if bad:
                what = f"{self.model} is not as it was: {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}"
                raise PortraitDiffusionError("model-damaged", what, "Remove it, and download it again")
            return "Every file is as it was published or installed"
        if self.action == "remove":
            return f"Removed: {size_text(answered['freed'])} are free again"
        if self.action == "convert":
            return "Converted, and ready"
        return "Installed; convert it next" if answered.get("convert") and not answered.get("converted") else "Installed, and ready"


def arguments(action: Action, model: str, accepted: bool = False, mirror: Path | None = None) -> list[str]:
    """Return the program's arguments; --yes, which accepts the licence, only where it was accepted."""
    if action == "convert":
        return ["models", "convert", "--as", model, "--json"]
    given = ["models", action, model, "--json"]
    if action in ("download", "verify"):
        given.append("--json-progress")
    if action == "download":
        given += ["--yes"] if accepted else []
        given += ["--from", str(mirror)] if mirror is not None else []
    return given


def size_text(size: int, as_of: int = 0) -> str:
    """Return bytes for people, "4.3 GB" or "12.0 MB"; as_of: the whole, whose unit then follows and is left out here."""
    unit, text = (1e9, "GB") if max(size, as_of) >= 1e9 else (1e6, "MB")
    return f"{size / unit:.1f}" if as_of else f"{size / unit:.1f} {text}"


def read_transfer(line: str) -> Transfer | None:
    """Return the progress that a line of `--json-progress` tells, None for any other line."""
    if not line.startswith('{"step"'):
        return None
    try:
        value = json.loads(line)
        return Transfer(str(value["step"]), str(value["file"]), int(value["done"]), int(value["total"]))
    except (ValueError, KeyError, TypeError):
        return None


def answer(lines: list[str]) -> dict[str, Any] | None:
    """Return the JSON object among the lines of an output, None if there is none."""
    for number, line in enumerate(lines):
        if line.startswith("{"):
            try:
                value, _ = json.JSONDecoder().raw_decode("\n".join(lines[number:]))
            except ValueError:
                continue
            return value if isinstance(value, dict) else None
    return None


def told(value: dict[str, Any]) -> PortraitDiffusionError:
    """Return the error that the program told as JSON, with a hint in the panel's words where its own are the command line's."""
    code, retryable = str(value["code"]), bool(value.get("retryable"))
    hint = str(value.get("hint", ""))
    if code in HINTS and (retryable or "--" in hint or "portrait-diffusion " in hint):
        hint = HINTS[code]
    return PortraitDiffusionError(code, str(value.get("message", "")), hint, retryable)
