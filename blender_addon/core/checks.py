"""Pre-flight checks as data: what is in the way, and the operator that mends it. The panel draws each with its button."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .manager import State

Severity = Literal["stop", "note"]
PHOTO_CODES = ("no-face", "face-", "photo-", "image-")
MEMORY_CODES = ("out-of-memory", "worker-died")
"""A worker that is killed has most often run out of memory: then smaller settings are offered beside Resume."""


@dataclass(frozen=True)
class Fix:
    """A button: the operator's name, what is written on it, its properties."""

    operator: str
    text: str
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """Something the user should know; "stop": nothing can be generated until it is mended."""

    id: str
    severity: Severity
    text: str
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True)
class Situation:
    """What the checks look at. offered: the connected backend's stages, None without one."""

    state: State
    message: str = ""
    outdated: bool = False
    has_photo: bool = False
    photo_problem: str = ""
    needs_network: bool = False
    online: bool = True
    offered: tuple[str, ...] | None = None
    stages: tuple[str, ...] = ("prior",)
    backend_version: str = ""
    own_version: str = ""


@dataclass(frozen=True)
class Failure:
    """How the last job ended badly. can_resume: the backend kept its finished stages; smaller: settings that need less memory."""

    job: str
    code: str
    message: str
    hint: str
    can_resume: bool = False
    can_shrink: bool = False


INSTALL = Fix("portrait.backend_install", "Install backend")
GO_ON = Fix("portrait.backend_install", "Go on installing")
START = Fix("portrait.backend_start", "Start backend")
CONNECT = Fix("portrait.backend_start", "Connect")
PREFERENCES = Fix("portrait.preferences", "Open preferences")
LOG = Fix("portrait.backend_log", "Show log")
PHOTO = Fix("portrait.choose_photo", "Choose photo")
ONLINE = Fix("portrait.allow_online", "Allow online access")


def preflight(now: Situation) -> list[Check]:
    """Return what stands in the way of generating, the most basic first; empty: all is well."""
    checks = [*_backend(now)]
    if now.needs_network and not now.online:
        text = "Blender's online access is off, this needs the network"
        checks.insert(0, Check("offline", "stop", text, (ONLINE, PREFERENCES)))
    if now.photo_problem:
        checks.append(Check("photo", "stop", now.photo_problem, (PHOTO,)))
    elif not now.has_photo:
        checks.append(Check("no-photo", "stop", "Choose a photo: one face, seen from the front", (PHOTO,)))
    if not now.stages:
        checks.append(Check("no-stage", "stop", "No stage is switched on", (Fix("portrait.reset_setting", "Reset", {"path": "stages"}),)))
    missing = [stage for stage in now.stages if now.offered is not None and stage not in now.offered]
    if missing:
        text = f"The backend (version {now.backend_version}) has no stage {', '.join(missing)}"
        checks.append(Check("stage-unavailable", "stop", text, (Fix("portrait.drop_stages", "Leave out"),)))
    return checks


def _backend(now: Situation) -> list[Check]:
    if now.state is State.ABSENT:
        return [Check("no-backend", "stop", "The backend is not installed yet (once, some minutes)", (INSTALL,))]
    if now.state is State.BROKEN:
        return [Check("backend-broken", "stop", now.message, (GO_ON, LOG))]
    if now.state is State.OFFLINE:
        return [Check("not-connected", "stop", now.message or "Not connected to the backend", (CONNECT, PREFERENCES))]
    if now.state is State.LOST:
        return [Check("backend-lost", "stop", now.message, (START, LOG))]
    if now.state is State.INSTALLED and now.outdated:
        text = now.message or "The installed backend is of another version"
        return [Check("backend-outdated", "stop", text, (Fix("portrait.backend_install", "Update backend"),))]
    if now.offered is not None and now.backend_version and now.own_version and now.backend_version != now.own_version:
        text = f"The backend is version {now.backend_version}, this extension {now.own_version}"
        return [Check("version", "note", text)]
    return []


def after(failure: Failure) -> Check:
    """Return the check that a failed job leaves behind, with the buttons that fit its error."""
    fixes: list[Fix] = []
    if failure.code.startswith(PHOTO_CODES):
        fixes.append(Fix("portrait.choose_photo", "Choose another photo"))
    if failure.can_shrink and failure.code.startswith(MEMORY_CODES):
        fixes.append(Fix("portrait.suggested_settings", "Use settings that need less memory", {"job": failure.job}))
    if failure.code == "stage-unavailable":
        fixes.append(Fix("portrait.drop_stages", "Leave out"))
    if failure.can_resume:
        fixes.append(Fix("portrait.resume", "Resume", {"job": failure.job}))
    fixes.append(Fix("portrait.dismiss", "Dismiss", {"job": failure.job}))
    text = failure.message if failure.message.endswith((".", "!")) else failure.message + "."
    return Check("job-failed", "note", f"{text} {failure.hint}".strip(), tuple(fixes))
