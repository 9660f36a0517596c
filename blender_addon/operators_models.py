"""Operators for the backend's models: download (from the network or a folder), verify, convert, remove, cancel.

A download is confirmed first, beside the facts that one agrees to. The backend's own program does the work, in the
background; scripts and `blender -b` wait for its end.
"""

from pathlib import Path
from typing import Any

import bpy
from bpy.props import BoolProperty, StringProperty

from portrait_shared.errors import PortraitDiffusionError

from . import backend_box, runtime
from .operators_backend import refuse

DIALOG_WIDTH = 460
"""Wide enough for the longest licence's name in two lines."""
ACCEPT = {
    "allowed": "I accept this licence",
    "not allowed": "I accept this licence, and will make no commercial use",
    "unclear": "I accept this licence; commercial use is unclear",
}


def find(name: str) -> Any:
    """Return the model of the backend's list; PortraitDiffusionError ``model-unknown``."""
    for model in runtime.session().models:
        if model.name == name:
            return model
    raise PortraitDiffusionError("model-unknown", f"the backend lists no model named {name!r}", "Start the backend, and refresh the list")


def draw_facts(layout: bpy.types.UILayout, model: Any, width: int = 0) -> None:
    """Draw what one should know before a download; width: of the popup in pixels at scale 1, 0 for the region's."""
    column = layout.column(align=True)
    backend_box.paragraph(column, f"{model.title}: {model.purpose}", width=width)
    backend_box.paragraph(column, f"{model.size_text}, from {model.page.removeprefix('https://')}", icon="IMPORT", width=width)
    backend_box.paragraph(column, f"Licence: {model.licence}", icon="FILE_TEXT", width=width)
    row = column.column(align=True)
    row.alert = model.commercial_use == "not allowed"
    icon = {"allowed": "CHECKMARK", "not allowed": "CANCEL"}.get(model.commercial_use, "QUESTION")
    backend_box.paragraph(row, f"Commercial use: {model.commercial_use}", icon=icon, width=width)
    if model.note:
        backend_box.paragraph(column, f"Note: {model.note}", icon="INFO", width=width)


class _ModelOperator:
    """What all of them share: start the work; wait for it where nobody clicked."""

    bl_options = {"INTERNAL"}
    action = "verify"

    model: StringProperty(name="Model", description="Its name in the list", options={"SKIP_SAVE"})
    wait: BoolProperty(
        name="Wait", description="Return when it is done; off: at once, as a click does", default=True, options={"SKIP_SAVE", "HIDDEN"}
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Start it and return."""
        self.wait = False
        return self.execute(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Start it, and wait for the end unless told not to."""
        session = runtime.session()
        try:
            find(self.model)
            self.start(session)
            if not self.wait:
                return {"FINISHED"}
            session.backend.model_work.wait()
            session.poll()
            if (error := session.backend.model_work.error) is not None:
                raise error
        except PortraitDiffusionError as error:
            return refuse(self, error)
        self.report({"INFO"}, f"{self.model}: {session.backend.model_work.outcome}")
        return {"FINISHED"}

    def start(self, session: Any) -> None:
        """Start the work; raises PortraitDiffusionError."""
        session.backend.work_on_model(self.action, self.model)


class PORTRAIT_OT_model_download(_ModelOperator, bpy.types.Operator):
    """Download this model: shows size, source and licence first. Interrupted, it goes on where it stopped"""

    bl_idname = "portrait.model_download"
    bl_label = "Download Model"

    directory: StringProperty(
        name="Folder", description="Copy the files from this folder instead of the network", subtype="DIR_PATH", options={"SKIP_SAVE"}
    )
    accepted: BoolProperty(name="I accept this licence", description="Without it nothing is downloaded", options={"SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Show what one agrees to."""
        self.wait = False
        try:
            model = find(self.model)
            self.refuse_offline()
        except PortraitDiffusionError as error:
            return refuse(self, error)
        title = f"Copy {model.name}" if self.directory else f"Download {model.name}"
        return context.window_manager.invoke_props_dialog(self, width=DIALOG_WIDTH, title=title, confirm_text=title.split()[0])

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the facts and the tick."""
        try:
            model = find(self.model)
        except PortraitDiffusionError as error:  # the backend went away below the dialog
            backend_box.paragraph(self.layout, f"{error.message}. {error.hint}", icon="ERROR", width=DIALOG_WIDTH)
            return
        draw_facts(self.layout, model, DIALOG_WIDTH)
        if self.directory:
            backend_box.paragraph(self.layout, f"Copied from {self.directory}", icon="FILE_FOLDER", width=DIALOG_WIDTH)
        self.layout.operator("wm.url_open", text="Read the Licence", icon="URL").url = model.licence_page
        self.layout.prop(self, "accepted", text=ACCEPT.get(model.commercial_use, ACCEPT["unclear"]))

    def start(self, session: Any) -> None:
        """Start the download."""
        self.refuse_offline()
        mirror = Path(bpy.path.abspath(self.directory)) if self.directory else None
        session.backend.work_on_model("download", self.model, self.accepted, mirror)

    def refuse_offline(self) -> None:
        """Raise where the network would be needed and Blender's user has not allowed it, or no program can fetch the files."""
        if self.directory:
            return
        model = find(self.model)
        if model.manual:
            hint = f"Download the file by hand from {model.page}, then use From Folder"
            raise PortraitDiffusionError("download-manual", f"{model.name} can't be fetched by a program", hint)
        if not bpy.app.online_access:
            hint = "Allow it in the system preferences, or use From Folder"
            raise PortraitDiffusionError("offline", "Blender's online access is off", hint)


class PORTRAIT_OT_model_from_folder(bpy.types.Operator):
    """Take this model's files from a folder (a stick, a server, a download by hand); shows the licence first"""

    bl_idname = "portrait.model_from_folder"
    bl_label = "Take From Folder"
    bl_options = {"INTERNAL"}

    model: StringProperty(options={"SKIP_SAVE", "HIDDEN"})
    directory: StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})
    filter_folder: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Let the user choose the folder."""
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Go on to the dialog with the licence."""
        return bpy.ops.portrait.model_download("INVOKE_DEFAULT", model=self.model, directory=self.directory)


class PORTRAIT_OT_model_verify(_ModelOperator, bpy.types.Operator):
    """Read every file of this model again and compare its checksum"""

    bl_idname = "portrait.model_verify"
    bl_label = "Verify Model"
    action = "verify"


class PORTRAIT_OT_model_convert(_ModelOperator, bpy.types.Operator):
    """Make safetensors of the downloaded checkpoint, once; nothing in it is executed"""

    bl_idname = "portrait.model_convert"
    bl_label = "Convert Model"
    action = "convert"


class PORTRAIT_OT_model_remove(_ModelOperator, bpy.types.Operator):
    """Remove this model from the disk, and what an interrupted download left of it"""

    bl_idname = "portrait.model_remove"
    bl_label = "Remove Model"
    action = "remove"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask first."""
        self.wait = False
        return context.window_manager.invoke_confirm(self, event)


class PORTRAIT_OT_models_cancel(bpy.types.Operator):
    """Stop it; what has been downloaded stays, and is used the next time"""

    bl_idname = "portrait.models_cancel"
    bl_label = "Cancel"
    bl_options = {"INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Cancel the work on a model."""
        runtime.session().backend.model_work.cancel()
        return {"FINISHED"}


class PORTRAIT_OT_models_dismiss(bpy.types.Operator):
    """Hide this message"""

    bl_idname = "portrait.models_dismiss"
    bl_label = "Dismiss"
    bl_options = {"INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Forget how the last work on a model ended."""
        runtime.session().backend.model_work.dismiss()
        return {"FINISHED"}


class PORTRAIT_OT_models_refresh(bpy.types.Operator):
    """Ask the backend again which models are there"""

    bl_idname = "portrait.models_refresh"
    bl_label = "Refresh"
    bl_options = {"INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Ask; the panel shows the answer when it comes."""
        if not runtime.session().backend.connected:
            self.report({"WARNING"}, "The backend is not running")
            return {"CANCELLED"}
        runtime.session().ask_models()
        return {"FINISHED"}


class PORTRAIT_OT_copy_command(bpy.types.Operator):
    """Copy the command that gets this model: run it in a terminal on the backend's machine, it shows the licence and asks"""

    bl_idname = "portrait.copy_command"
    bl_label = "Copy Command"
    bl_options = {"INTERNAL"}

    command: StringProperty(options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Put it on the clipboard and say it."""
        context.window_manager.clipboard = self.command
        self.report({"INFO"}, f"Copied: {self.command}")
        return {"FINISHED"}


CLASSES = (
    PORTRAIT_OT_model_download,
    PORTRAIT_OT_model_from_folder,
    PORTRAIT_OT_model_verify,
    PORTRAIT_OT_model_convert,
    PORTRAIT_OT_model_remove,
    PORTRAIT_OT_models_cancel,
    PORTRAIT_OT_models_dismiss,
    PORTRAIT_OT_models_refresh,
    PORTRAIT_OT_copy_command,
)
