"""Everything that runs while the add-on is enabled, driven by one timer.

Threading rules: the link's thread owns the sockets and does files and arrays; the main thread owns Blender's data. `poll`
is called by the timer (and by scripts and tests directly), takes events for a few milliseconds and returns. No Blender
object is kept across time: ids and names are, and they are looked up again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import bpy

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import ModelInfo, new_id

from . import preferences
from .core import head_data, jobs
from .core.folders import Folders
from .core.installer import Options
from .core.jobs import Job, Jobs
from .core.link import Connected, Disconnected, Done, Event, Failed, Link, Progress, State
from .core.manager import Backend
from .photo import ChosenPhoto
from .pictures import Pictures

BUDGET_SECONDS = 0.008
"""One timer call takes new events for so long; each takes well under 10 ms (an import 30)."""
ACTIVE_SECONDS, IDLE_SECONDS = 0.1, 0.5
"""Between two timer calls: while something is under way, and else (a dead backend is then noticed within a second)."""
STATUS_SECONDS = 5.0
"""How often the backend's free memory is asked for."""


class Session:
    """The link, the backend, the jobs and the pictures of this Blender."""

    def __init__(self, package: str) -> None:
        self.folders = Folders(Path(bpy.utils.extension_path_user(package, create=True)))
        self.addon = Path(__file__).parent
        self.link = Link()
        self.backend = Backend(self.folders, self.wheel, self.link)
        self.jobs = Jobs(self.folders.jobs)
        self.pictures = Pictures()
        self.notice = ""
        self.models: tuple[ModelInfo, ...] = ()
        self.history_page = 0
        self._waiting: list[tuple[str, Any]] = []
        self._status_at = 0.0
        self._drawn: object = None

    # --- what is bundled

    @property
    def wheel(self) -> Path | None:
        """The project's wheel that came with this extension (None in a source tree)."""
        return next(iter(sorted((self.addon / "wheels").glob("portrait_diffusion-*.whl"))), None)

    @property
    def version(self) -> str:
        """The version of this extension."""
        return self.wheel.name.split("-")[1] if self.wheel else ""

    def install_options(self) -> Options:
        """Return what the preferences say about an installation; raises PortraitDiffusionError wheel-missing, folder-missing."""
        import shutil
        import sys

        given = preferences.current()
        if self.wheel is None:
            raise PortraitDiffusionError("wheel-missing", f"{self.addon} holds no wheel", "Install the extension from its zip")
        folder = Path(bpy.path.abspath(given.wheel_folder)) if given.wheel_folder else None
        if folder is not None and not folder.is_dir():
            raise PortraitDiffusionError(
                "folder-missing", f"there is no folder {folder}", "Correct the offline wheel folder in the preferences"
            )
        torch = {"CPU": "cpu", "GPU": "gpu"}.get(given.torch) or ("gpu" if shutil.which("nvidia-smi") else "cpu")
        return Options(self.wheel, self.addon / "constraints.txt", torch, folder, sys.executable)

    # --- the timer

    def poll(self) -> float:
        """Do what is due and return the seconds until the next call."""
        start = time.perf_counter()
        self.backend.tick()
        while time.perf_counter() - start < BUDGET_SECONDS and (event := self.link.take()) is not None:
            self._handle(event)
        if self.backend.model_work.ended():
            self.ask_models()
        self._send_waiting()
        self._ask_status()
        self._import_ready()
        self.redraw_if_changed()
        return ACTIVE_SECONDS if self.busy else IDLE_SECONDS

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self.jobs.active or self._waiting or not self.backend.settled or any(job.fetching for job in self.jobs))

    def close(self) -> None:
        """Leave. A backend without work is stopped; one that works goes on until Blender ends."""
        self.backend.installer.cancel()
        self.backend.model_work.cancel()
        if self.jobs.active:
            self.backend.disconnect()
        else:
            self.backend.stop()
        self.link.close()
        self.pictures.close()

    def file_closes(self) -> None:
        """Another file is loaded: nothing is imported into it by itself."""
        for job in self.jobs:
            if job.wanted:
                job.wanted = False
                job.head = None
                self.notice = f"{job.name} goes on and can be imported from History"

    def apply_preferences(self) -> None:
        """Take the backend that the preferences name now."""
        self.backend.choose(preferences.plan())

    def redraw_if_changed(self) -> None:
        """Redraw the panels if what they show has changed."""
        now = self._shown()
        if now == self._drawn:
            return
        self._drawn = now
        redraw()

    def _shown(self) -> object:
        backend = self.backend
        log = backend.log.tail(1) if backend.state.name == "INSTALLING" else ()
        work = backend.model_work
        models = (self.models, work.model, work.title, work.amount, work.running, work.outcome, work.error)
        head = (backend.state, backend.message, backend.installer.step, tuple(log), backend.info, self.notice, models)
        follow = self.jobs.current
        second = int(time.monotonic()) if follow is not None and follow.active and follow.eta is not None else 0
        return head, second, tuple((j.id, j.state, j.stage, j.step, j.here, j.fetching, j.head is None) for j in self.jobs)

    # --- jobs

    def submit(self, photo: ChosenPhoto | None, settings: dict[str, Any], name: str, scene: str, parent: Job | None = None) -> Job:
        """Queue a job and return it at once; it is sent as soon as a backend is connected (which is started if need be).

        photo None: `parent` keeps its geometry and gets a new texture.
        """
        import shutil

        id = new_id()
        job = self.jobs.add(Job(id, name, self.folders.jobs / id, seed=settings.get("seed", 0), settings=settings))
        job.scene, job.wanted, job.parent = scene, preferences.current().auto_import, parent.id if parent else None
        self.jobs.followed = id
        self.notice = ""

        def send(client: Any) -> Any:
            inputs = job.folder / jobs.INPUT
            inputs.mkdir(parents=True, exist_ok=True)
            if photo is None:
                assert parent is not None
                kept = jobs.photo_in(parent.folder)
                if kept is not None:
                    shutil.copyfile(kept, inputs / kept.name)
                return client.submit(None, settings, name=name, parent=parent.id, start="texture", id=id)
            path = jobs.photo_in(job.folder) or photo.write(inputs / photo.name)
            return client.submit(path, settings, name=name, id=id)

        self._waiting.append((id, send))
        if not self.backend.connected:
            self.backend.start()
        self._send_waiting()
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job."""
        waiting = [entry for entry in self._waiting if entry[0] == job.id]
        if waiting:
            self._waiting.remove(waiting[0])
            self._drop(job)
            return
        job.state = "cancelling"
        self.link.ask("cancel", lambda client: client.cancel(job.id), job.id)

    def resume(self, job: Job, scene: str) -> None:
        """Let a failed or cancelled job go on after its last finished stage."""
        job.state, job.error, job.wanted, job.scene = "queued", None, preferences.current().auto_import, scene
        self.jobs.followed = job.id
        self._waiting.append((job.id, lambda client: client.resume(job.id)))
        if not self.backend.connected:
            self.backend.start()
        self._send_waiting()

    def fetch(self, job: Job) -> None:
        """Bring a finished job's head here and read it; it is imported by `poll` if it is wanted, or by the caller."""
        if job.fetching:
            return
        job.fetching = True
        if job.here:
            self.link.work("read", lambda: head_data.read_head(job.folder), job.id)
        else:
            self.link.ask("fetch", lambda client: self._fetch(client, job), job.id)

    def delete(self, job: Job) -> None:
        """Delete a job, here and on the backend."""
        if job.on_backend and self.backend.connected:
            self.link.ask("delete", lambda client: client.delete(job.id), job.id)
        self.link.work("remove", lambda: jobs.remove_folder(self.folders.jobs, job.id), job.id)
        self.jobs.forget(job.id)

    def scan_history(self) -> None:
        """Look for heads that lie on this disk."""
        self.link.work("scan", lambda: jobs.read_notes(self.folders.jobs))

    def _send_waiting(self) -> None:
        if not self.backend.connected:
            return
        for id, send in self._waiting:
            self.link.ask("submit", send, id)
        self._waiting.clear()

    def _ask_status(self) -> None:
        now = time.monotonic()
        if self.backend.connected and now - self._status_at > STATUS_SECONDS:
            self._status_at = now
            self.link.ask("status", lambda client: client.status())

    def ask_models(self) -> None:
        """Ask the backend which models there are; without one the list is unknown again, rather than old."""
        if self.backend.connected:
            self.link.ask("models", lambda client: client.catalogue())
        else:
            self.models = ()

    @staticmethod
    def _fetch(client: Any, job: Job) -> head_data.HeadData:
        info = client.job(job.id)
        names = [file.name for file in info.files if file.name in head_data.WANTED]
        client.result(job.id, job.folder, names)
        jobs.write_note(job)
        return head_data.read_head(job.folder)

    def _drop(self, job: Job) -> None:
        self.link.work("remove", lambda: jobs.remove_folder(self.folders.jobs, job.id), job.id)
        self.jobs.forget(job.id)

    # --- events

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Progress):
            job = self.jobs.get(event.progress.job)
            if job is not None:
                job.advance(event.progress, now)
                if event.progress.preview is not None and job.id == self.jobs.followed:
                    self.pictures.live(job.id, event.progress.preview)
                    self._drawn = None
        elif isinstance(event, State):
            self._took(self.jobs.known(event.job, now))
        elif isinstance(event, (Connected, Disconnected)):
            self.backend.take(event)
            if isinstance(event, Connected) and self.backend.connected:
                self._status_at = now
                self.link.ask("list", lambda client: client.jobs())
                self.ask_models()
        elif isinstance(event, Done):
            self._done(event, now)
        else:
            self._failed(event)

    def _took(self, job: Job) -> None:
        if job.state == "completed" and job.wanted and job.head is None:
            self.fetch(job)
        if job.state == "cancelled":
            job.wanted = False

    def _done(self, event: Done, now: float) -> None:
        if event.name in ("submit", "cancel"):
            self._took(self.jobs.known(event.value, now))
        elif event.name == "list":
            for info in event.value:
                self._took(self.jobs.known(info, now))
            if self.jobs.current is None and self.jobs.active:
                self.jobs.followed = self.jobs.active[0].id
        elif event.name == "scan":
            for job in event.value:
                if self.jobs.get(job.id) is None:
                    self.jobs.add(job)
        elif event.name == "status" and self.backend.connected:
            self.backend.info = event.value
        elif event.name == "models":
            self.models = event.value
        elif event.name in ("fetch", "read") and (job := self.jobs.get(event.about)) is not None:
            job.fetching, job.here, job.head = False, True, event.value

    def _failed(self, event: Failed) -> None:
        job = self.jobs.get(event.about)
        if job is None:
            if event.name not in ("shutdown", "status", "models"):
                self.notice = str(event.error)
            return
        if event.name == "submit" and event.error.code in ("backend-lost", "backend-unreachable"):
            self._send_again(job)
        elif event.name == "submit":
            job.state, job.error = "failed", event.error
        elif event.name in ("fetch", "read"):
            job.fetching, job.wanted, job.error = False, False, event.error
            if event.name == "read":
                job.here = False  # damaged: fetch it again
        else:
            self.notice = str(event.error)

    def _send_again(self, job: Job) -> None:
        """The backend went away while the photo was being sent: the same submission (its id makes it one) when it is back."""
        if job.on_backend:
            self._waiting.append((job.id, lambda client: client.resume(job.id)))
            return
        settings, name = job.settings, job.name
        path = jobs.photo_in(job.folder)
        parent, start = job.parent, "texture" if job.parent else None
        self._waiting.append(
            (job.id, lambda client: client.submit(None if parent else path, settings, name=name, parent=parent, start=start, id=job.id))
        )

    # --- import

    def _import_ready(self) -> None:
        """Import one head that waits, if nothing is in the way; the next call takes the next."""
        job = next((job for job in self.jobs if job.wanted and job.head is not None), None)
        if job is None or not in_object_mode():
            return
        from . import scene_import

        job.wanted = False
        scene_import.import_job(self, job, undo=True)

    def job_settings(self, job: Job) -> dict[str, Any]:
        """Return a job's settings as {path: value}."""
        from .core.settings_view import flatten

        return flatten(json.loads(json.dumps(job.settings)))


def redraw() -> None:
    """Redraw the sidebars and the preferences."""
    for window in bpy.context.window_manager.windows if bpy.context.window_manager else ():
        for area in window.screen.areas:
            if area.type in ("VIEW_3D", "PREFERENCES", "IMAGE_EDITOR"):
                for region in area.regions:
                    if region.type in ("UI", "WINDOW") and (area.type != "VIEW_3D" or region.type == "UI"):
                        region.tag_redraw()


def in_object_mode() -> bool:
    """Return whether a head may be brought in now: Object mode, and no render is running."""
    active = active_object()
    return (active is None or active.mode == "OBJECT") and not bpy.app.is_job_running("RENDER")


def active_object() -> bpy.types.Object | None:
    """Return the active object of the window that the user works in (timers have no context of their own)."""
    windows = bpy.context.window_manager.windows if bpy.context.window_manager else ()
    layer = windows[0].view_layer if len(windows) else bpy.context.view_layer
    return layer.objects.active if layer is not None else None
