"""Operators that make heads: generate, cancel, re-texture, again with the same seed, resume.

`invoke` (a click) returns at once and the timer does the rest; `execute` (a script, `blender -b`) waits for the end and leaves
the head as the active object, unless it is told not to wait.
"""

import json
import time
from typing import Any

import bpy
from bpy.props import BoolProperty, FloatProperty, IntProperty, StringProperty

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import from_dict

from . import photo, properties, runtime
from .core import settings_view
from .core.jobs import Job, has_head, photo_in
from .core.manager import State
from .operators_backend import refuse

WAIT_SECONDS = 0.02
GIVE_UP = frozenset({State.ABSENT, State.BROKEN, State.OFFLINE})


def wait_for(job: Job, timeout: float) -> bpy.types.Object:
    """Drive the session until a job's head is in the scene and return it; raises PortraitDiffusionError."""
    session = runtime.session()
    end = time.monotonic() + timeout if timeout > 0 else float("inf")
    said = ""
    while True:
        session.poll()
        if job.title != said and job.state == "running":
            said = job.title
            print(f"Portrait Diffusion: {said}")
        if job.state == "completed" and not job.fetching and job.error is None:
            break
        if job.error is not None and (job.state == "failed" or not job.fetching):
            raise _as_exception(job.error)
        if job.state == "cancelled":
            raise PortraitDiffusionError("cancelled", f"the job {job.name} was cancelled", "Start it again", retryable=True)
        backend = session.backend
        if backend.state in GIVE_UP or (backend.state is State.LOST and backend.settled):
            raise PortraitDiffusionError(
                "backend-unavailable", f"the backend is {backend.state.value}", backend.message or "Install and start it"
            )
        if time.monotonic() > end:
            raise PortraitDiffusionError(
                "timeout", f"the job {job.name} is not done after {timeout:g} s", "Import it from History later", True
            )
        time.sleep(WAIT_SECONDS)
    return bring_in(job, end)


def bring_in(job: Job, end: float = float("inf")) -> bpy.types.Object:
    """Import a completed job's head, fetching it first if need be, and return it."""
    from . import scene_import

    session = runtime.session()
    while job.head is None:
        if job.error is not None:
            raise _as_exception(job.error)
        session.fetch(job)
        session.poll()
        if time.monotonic() > end:
            raise PortraitDiffusionError("timeout", f"the head {job.name} did not arrive in time", "Import it from History later", True)
        time.sleep(WAIT_SECONDS)
    return scene_import.import_job(session, job, undo=False)


def _as_exception(error: Any) -> PortraitDiffusionError:
    return PortraitDiffusionError(error.code, error.message, error.hint, error.retryable)


class _JobOperator:
    """What all of them share: check, submit, and wait where nobody clicked."""

    bl_options = {"REGISTER"}

    wait: BoolProperty(
        name="Wait", description="Return when the head is in the scene; off: at once, as a click does", default=True, options={"SKIP_SAVE"}
    )
    timeout: FloatProperty(name="Timeout", description="Seconds to wait in scripts; 0: as long as it takes", default=0.0, min=0.0)

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Submit and return; the head comes in when it is done."""
        self.wait = False
        return self.execute(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Submit, wait, import; the head is the active object then."""
        try:
            job = self.submit(context)
            if not self.wait:
                return {"FINISHED"}
            job.wanted = False  # imported here, not by the timer
            wait_for(job, self.timeout)
        except PortraitDiffusionError as error:
            return refuse(self, error)
        bpy.ops.ed.undo_push(message=f"Import {job.name}")
        return {"FINISHED"}


class PORTRAIT_OT_generate(_JobOperator, bpy.types.Operator):
    """Make a head from the photo"""

    bl_idname = "portrait.generate"
    bl_label = "Generate"

    filepath: StringProperty(name="Photo", description="Photo to use instead of the panel's", subtype="FILE_PATH", options={"SKIP_SAVE"})
    image: StringProperty(name="Image", description="Name of an image of this Blender file to use as photo", options={"SKIP_SAVE"})
    preset: StringProperty(name="Preset", description="Preset instead of the panel's", options={"SKIP_SAVE"})
    settings: StringProperty(
        name="Settings", description='JSON that overrides the panel\'s settings, as {"mesh": {"faces": 20000}}', options={"SKIP_SAVE"}
    )
    seed: IntProperty(name="Seed", description="Seed instead of the panel's", default=-1, min=-1, options={"SKIP_SAVE"})
    name: StringProperty(name="Name", description="Name of the head", options={"SKIP_SAVE"})

    def submit(self, context: bpy.types.Context) -> Job:
        """Check everything and queue the job."""
        props = context.scene.portrait
        chosen = self.photo(props)
        settings = request(props, self.preset, self.settings, self.seed)
        name = self.name or props.name or chosen.name
        return runtime.session().submit(chosen, settings, name, context.scene.name)

    def photo(self, props: bpy.types.PropertyGroup) -> photo.ChosenPhoto:
        """Return the photo of the arguments, else the panel's."""
        if self.filepath:
            from pathlib import Path

            path = Path(bpy.path.abspath(self.filepath))
            if not path.is_file():
                raise PortraitDiffusionError("image-missing", f"there is no file {path}", "Check the path and its spelling")
            return photo.of_file(path)
        if self.image:
            image = bpy.data.images.get(self.image)
            if image is None:
                raise PortraitDiffusionError("image-missing", f"this Blender file has no image {self.image!r}", "Check its name")
            return photo.of_image(image)
        return photo.take(props)


def request(props: bpy.types.PropertyGroup, preset: str = "", overriding: str = "", seed: int = -1) -> dict[str, Any]:
    """Return the settings to send: the panel's, changed by the arguments; raises PortraitDiffusionError setting-invalid."""
    values = properties.values(props.settings)
    wanted = preset or props.preset
    if wanted not in settings_view.presets():
        raise PortraitDiffusionError(
            "setting-invalid", f"there is no preset {wanted!r}", f"Choose from {', '.join(settings_view.presets())}"
        )
    values.update(settings_view.follow_preset(values, props.preset, wanted))
    if overriding:
        try:
            values.update(settings_view.flatten(json.loads(overriding)))
        except (ValueError, AttributeError) as error:
            raise PortraitDiffusionError(
                "setting-invalid", f"settings is no JSON object ({error})", 'Write {"mesh": {"faces": 20000}}'
            ) from error
    if seed >= 0:
        values["seed"] = seed
    data = settings_view.request(values, wanted)
    from_dict(data)
    return {**data, "seed": values["seed"]}


class PORTRAIT_OT_retexture(_JobOperator, bpy.types.Operator):
    """Make the texture anew with the settings of now; mesh and UVs stay as they are"""

    bl_idname = "portrait.retexture"
    bl_label = "Re-texture"

    job: StringProperty(description="The finished job; empty: the active head's", options={"SKIP_SAVE"})

    def submit(self, context: bpy.types.Context) -> Job:
        """Queue a job that begins after the geometry."""
        parent = finished(self.job or active_job(context))
        settings = request(context.scene.portrait)
        return runtime.session().submit(None, settings, f"{parent.name} re-textured", context.scene.name, parent)


class PORTRAIT_OT_again(_JobOperator, bpy.types.Operator):
    """Make the head once more from the same photo with the same seed, and the settings of now"""

    bl_idname = "portrait.again"
    bl_label = "Generate Again With This Seed"

    job: StringProperty(description="The job to repeat; empty: the active head's", options={"SKIP_SAVE"})

    def submit(self, context: bpy.types.Context) -> Job:
        """Queue the same photo with the job's seed."""
        session = runtime.session()
        earlier = session.jobs.get(self.job or active_job(context))
        if earlier is None:
            raise PortraitDiffusionError("job-unknown", "History has no such job", "Choose a head that this Blender made")
        kept = photo_in(earlier.folder)
        chosen = photo.of_file(kept) if kept else photo.take(context.scene.portrait)
        settings = request(context.scene.portrait, seed=earlier.seed)
        return session.submit(chosen, settings, earlier.name, context.scene.name)


class PORTRAIT_OT_resume(_JobOperator, bpy.types.Operator):
    """Let the job go on after its last finished stage"""

    bl_idname = "portrait.resume"
    bl_label = "Resume"

    job: StringProperty(options={"SKIP_SAVE"})

    def submit(self, context: bpy.types.Context) -> Job:
        """Queue it again."""
        session = runtime.session()
        job = session.jobs.get(self.job)
        if job is None or job.state not in ("failed", "cancelled"):
            raise PortraitDiffusionError("job-unknown", "there is no failed or cancelled job to resume", "Choose one in History")
        session.resume(job, context.scene.name)
        return job


class PORTRAIT_OT_cancel(bpy.types.Operator):
    """Cancel the job; its finished stages stay, it can be resumed from History"""

    bl_idname = "portrait.cancel"
    bl_label = "Cancel"

    job: StringProperty(options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Cancel it."""
        session = runtime.session()
        job = session.jobs.get(self.job or session.jobs.followed)
        if job is None or not job.active:
            self.report({"WARNING"}, "There is nothing to cancel")
            return {"CANCELLED"}
        session.cancel(job)
        return {"FINISHED"}


class PORTRAIT_OT_dismiss(bpy.types.Operator):
    """Clear this message; the job stays in History"""

    bl_idname = "portrait.dismiss"
    bl_label = "Dismiss"

    job: StringProperty(options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Follow no job."""
        session = runtime.session()
        session.jobs.followed = None
        session.notice = ""
        return {"FINISHED"}


def active_job(context: bpy.types.Context) -> str:
    """Return the job id of the active head, "" if the active object is none."""
    obj = context.view_layer.objects.active if context.view_layer else None
    return str(obj.get("portrait_job", "")) if obj is not None else ""


def finished(id: str) -> Job:
    """Return a finished job; raises PortraitDiffusionError job-unknown, job-not-finished."""
    job = runtime.session().jobs.get(id)
    if job is None:
        raise PortraitDiffusionError("job-unknown", "History has no such job", "Choose a head that this Blender made")
    if job.state != "completed" and not has_head(job.folder):
        raise PortraitDiffusionError("job-not-finished", f"the job {job.name} is {job.state}", "Wait until it is completed")
    return job


CLASSES = (
    PORTRAIT_OT_generate,
    PORTRAIT_OT_cancel,
    PORTRAIT_OT_retexture,
    PORTRAIT_OT_again,
    PORTRAIT_OT_resume,
    PORTRAIT_OT_dismiss,
)
