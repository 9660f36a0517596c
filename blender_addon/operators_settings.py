"""Operators that change the panel's settings: photo, seed, back to the preset, what a failed job suggests."""

import random
from pathlib import Path

import bpy
from bpy.props import StringProperty

from . import properties, runtime
from .core import settings_view

PICTURES = "*.jpg;*.jpeg;*.png;*.tif;*.tiff;*.webp;*.heic;*.heif;*.bmp;*.avif"


class PORTRAIT_OT_choose_photo(bpy.types.Operator):
    """Choose a photo: one face, seen from the front, at least 200 px wide, evenly lit, hair not cut off"""

    bl_idname = "portrait.choose_photo"
    bl_label = "Choose Photo"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(subtype="FILE_PATH")
    filter_glob: StringProperty(default=PICTURES, options={"HIDDEN"})

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Open the file browser."""
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Take the file."""
        if not Path(bpy.path.abspath(self.filepath)).is_file():
            self.report({"ERROR"}, f"There is no photo {self.filepath}")
            return {"CANCELLED"}
        context.scene.portrait.photo_source = "FILE"
        context.scene.portrait.photo_path = self.filepath
        return {"FINISHED"}


class PORTRAIT_OT_random_seed(bpy.types.Operator):
    """Take another seed: another guess at what the photo doesn't show"""

    bl_idname = "portrait.random_seed"
    bl_label = "Random Seed"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Draw a number."""
        context.scene.portrait.settings.seed = random.randrange(100000)
        return {"FINISHED"}


class PORTRAIT_OT_reset_setting(bpy.types.Operator):
    """Back to the preset's value"""

    bl_idname = "portrait.reset_setting"
    bl_label = "Reset to Preset"
    bl_options = {"REGISTER", "UNDO"}

    path: StringProperty(description="Dotted path of the setting; empty: all of them")

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Set the preset's value."""
        props = context.scene.portrait
        paths = [self.path] if self.path else list(properties.values(props.settings))
        known = properties.values(props.settings)
        properties.assign(props.settings, {path: settings_view.preset_value(props.preset, path) for path in paths if path in known})
        return {"FINISHED"}


class PORTRAIT_OT_drop_stages(bpy.types.Operator):
    """Leave out the stages that the connected backend doesn't have"""

    bl_idname = "portrait.drop_stages"
    bl_label = "Leave Out Stages"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Keep the stages that it has."""
        info = runtime.session().backend.info
        settings = context.scene.portrait.settings
        if info is not None:
            settings.stages = {stage for stage in settings.stages if stage in info.stages} or set(info.stages[:1])
        return {"FINISHED"}


class PORTRAIT_OT_suggested_settings(bpy.types.Operator):
    """Use settings that need less memory"""

    bl_idname = "portrait.suggested_settings"
    bl_label = "Use Smaller Settings"
    bl_options = {"REGISTER", "UNDO"}

    job: StringProperty()

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Take what the backend suggested, else the draft preset's sizes where they are smaller."""
        session, props = runtime.session(), context.scene.portrait
        job = session.jobs.get(self.job)
        suggested = settings_view.flatten(getattr(job.error, "suggested", None) or {}) if job is not None else {}
        if suggested.get("preset") in settings_view.presets():
            props.preset = suggested.pop("preset")
        properties.assign(props.settings, suggested or settings_view.smaller(properties.values(props.settings)))
        if job is not None and session.jobs.followed == job.id:
            session.jobs.followed = None
        return {"FINISHED"}


CLASSES = (
    PORTRAIT_OT_choose_photo,
    PORTRAIT_OT_random_seed,
    PORTRAIT_OT_reset_setting,
    PORTRAIT_OT_drop_stages,
    PORTRAIT_OT_suggested_settings,
)
