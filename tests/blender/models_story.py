"""What an artist does with the backend's models, in a real Blender (bpy) with a real backend: run by test_models_in_blender.py.

models_story.py EXTENSION.zip PHOTO WORK_FOLDER. The only network is a port on which nobody answers.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny_mirror
from in_bpy import PACKAGE, WORK, Paper, bpy, click, enable, gone, part, play, refused, session, turn

MODEL = tiny_mirror.MODEL
MODELS = Path(os.environ["PORTRAIT_DIFFUSION_MODELS"])
MIRROR = tiny_mirror.write(WORK / "stick")
kept: dict[str, Any] = {}


def work() -> Any:
    return session().backend.model_work


def found(name: str = MODEL) -> Any:
    return next(model for model in session().models if model.name == name)


def drawn(kind: Any, **state: Any) -> dict[str, Any]:
    """Let a panel or a dialog draw, and return its text, its operators and its progress bars."""
    noted: list[tuple[Any, dict[str, Any]]] = []
    kind.draw(SimpleNamespace(layout=Paper(noted), **state), bpy.context)
    return read(noted)


def read(noted: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    return {
        "text": " ".join(named["text"] for _, named in noted if named.get("text")),
        "buttons": [what for what, _ in noted if isinstance(what, str) and "." in what],
        "bars": [named["factor"] for what, named in noted if what == "progress"],
    }


def panel() -> dict[str, Any]:
    return drawn(part("models_panel").PORTRAIT_PT_models)


def box(name: str = MODEL, local: bool = True) -> dict[str, Any]:
    noted: list[tuple[Any, dict[str, Any]]] = []
    part("models_panel").draw_model(Paper(noted), found(name), work(), local)
    return read(noted)


def there() -> list[str]:
    return sorted(p.relative_to(MODELS).as_posix() for p in MODELS.rglob("*") if p.is_file()) if MODELS.exists() else []


class Silence:
    """An address where somebody takes the call and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.calls: list[Any] = []

    def called(self) -> bool:
        try:
            self.calls.append(self.socket.accept())
        except BlockingIOError:
            return False
        return True


# --- chapters


def before() -> dict[str, Any]:
    enable()
    return {"panel": panel(), "online": bpy.app.online_access}


def listed() -> dict[str, Any]:
    """Start the backend: the list comes with the connection."""
    bpy.ops.portrait.backend_start()
    turn(lambda: session().models)
    all_of_them = kept["models"] = session().models
    seen = {"names": [m.name for m in all_of_them], "panel": panel(), "panohead": box("panohead"), "brushnet": box()}
    copied = bpy.ops.portrait.copy_command(command=found("panohead").command)
    remote = box("panohead", local=False)
    session().models = ()
    bpy.ops.portrait.models_refresh()
    turn(lambda: session().models)
    return {**seen, "remote": remote, "copied": sorted(copied), "again": session().models == all_of_them}


def dialog() -> dict[str, Any]:
    kind = part("operators_models").PORTRAIT_OT_model_download
    return {name: drawn(kind, model=name, directory=folder) for name, folder in ((MODEL, ""), ("panohead", str(MIRROR)))}


def refusals() -> dict[str, Any]:
    download = bpy.ops.portrait.model_download
    return {
        "licence": refused(download, model=MODEL, directory=str(MIRROR)),
        "offline": refused(download, model=MODEL, accepted=True),
        "by hand": refused(download, model="panohead", accepted=True),
        "unknown": refused(download, model="huge", accepted=True, directory=str(MIRROR)),
        "nothing to verify": refused(bpy.ops.portrait.model_verify, model=MODEL),
        "no folder": refused(download, model=MODEL, accepted=True, directory=str(WORK / "nowhere")),
        "there": there(),
    }


def from_a_folder() -> dict[str, Any]:
    """Click, and watch it."""
    pressed = click(bpy.ops.portrait.model_download, model=MODEL, directory=str(MIRROR), accepted=True, wait=False)
    during = box()
    again = refused(bpy.ops.portrait.model_verify, model=MODEL)
    steps: set[str] = set()

    def installed() -> bool:
        steps.add(work().title if work().running else "")
        return found().state == "installed" or work().error is not None

    turn(installed, 120)
    return {"pressed": pressed, "during": during, "again": again, "steps": sorted(steps), "error": str(work().error), "there": there(),
            "after": box(), "state": part("models_panel").state_text(found())}  # fmt: skip


def checked_and_removed() -> dict[str, Any]:
    """Verify it, alter it, verify it again, remove it: as scripts do, waiting."""
    sound = sorted(bpy.ops.portrait.model_verify(model=MODEL))
    outcome = work().outcome
    (MODELS / MODEL / tiny_mirror.HEAVY).write_bytes(b"altered")
    altered = refused(bpy.ops.portrait.model_verify, model=MODEL)
    shown = box()["text"]
    bpy.ops.portrait.models_dismiss()
    dismissed = box()["text"]
    removed = sorted(bpy.ops.portrait.model_remove(model=MODEL))
    turn(lambda: found().state == "absent", 60)
    return {"sound": sound, "outcome": outcome, "altered": altered, "shown": shown, "dismissed": dismissed, "removed": removed,
            "there": there()}  # fmt: skip


def no_network() -> dict[str, Any]:
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    bpy.ops.portrait.allow_online()
    click(bpy.ops.portrait.model_download, model=MODEL, accepted=True, wait=False)
    turn(lambda: not work().running, 120)
    turn(lambda: session().models, 60)
    return {"code": work().error.code, "box": box(), "there": there()}


def cancelled() -> dict[str, Any]:
    silence = Silence()
    click(bpy.ops.portrait.model_download, model=MODEL, accepted=True, wait=False)
    turn(silence.called, 120)
    pressed = click(bpy.ops.portrait.models_cancel)
    start = time.monotonic()
    turn(lambda: not work().running, 120)
    return {"pressed": pressed, "seconds": time.monotonic() - start, "code": work().error.code, "text": box()["text"], "there": there()}


def without_a_backend() -> dict[str, Any]:
    """The list is not old after a change that no backend can tell of."""
    bpy.ops.portrait.model_download(model=MODEL, directory=str(MIRROR), accepted=True)
    turn(lambda: found().state == "installed", 60)
    click(bpy.ops.portrait.model_verify, model=MODEL, wait=False)
    pid = session().backend.info.pid
    bpy.ops.portrait.backend_stop()
    turn(lambda: not session().backend.connected and not work().running, 120)
    turn(lambda: gone(pid), 120)
    turn(lambda: not session().models, 60)
    return {"panel": panel()}


def remote() -> dict[str, Any]:
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.where = "REMOTE"
    session().models = kept["models"]
    seen = {"panel": panel(), "refused": refused(bpy.ops.portrait.model_remove, model=MODEL), "there": there()}
    preferences.where = "LOCAL"
    return seen


def disable() -> dict[str, Any]:
    """Disable the extension in the middle of a download: nothing goes on unseen."""
    silence = Silence()
    bpy.ops.portrait.backend_start()
    turn(lambda: session().models and session().backend.connected, 120)
    click(bpy.ops.portrait.model_download, model="sd15", accepted=True, wait=False)
    turn(silence.called, 120)
    pid = work()._process.pid
    ran = not gone(pid)
    bpy.ops.preferences.addon_disable(module=PACKAGE)
    end = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return {"ran": ran, "gone": gone(pid)}


CHAPTERS = (
    before, listed, dialog, refusals, from_a_folder, checked_and_removed, no_network, cancelled, without_a_backend, remote, disable,
)  # fmt: skip

if __name__ == "__main__":
    play(CHAPTERS)
