"""The panel "Models": what the backend could use besides its shipped weights, with the facts of `portrait-diffusion models list`.

Nothing is downloaded from here: the licence is shown and asked for on the command line, on the machine of the backend.
"""

from typing import Any

import bpy

from . import backend_box, runtime
from .panel import TAB

ICONS = {"installed": "CHECKMARK", "incomplete": "SORTTIME", "damaged": "ERROR", "absent": "BLANK1"}


def state_text(model: Any) -> str:
    """Return how a model is on the backend, in a word or two."""
    if model.converted:
        return "ready"
    if model.state == "installed" and model.command:
        return "installed, not converted yet"
    return {"installed": "ready", "absent": "not installed"}.get(model.state, model.state)


def facts(model: Any) -> tuple[str, ...]:
    """Return the lines about a model: what it is, size and source, licence, commercial use, what one should know."""
    lines = (
        f"{model.title}: {model.purpose}",
        f"{model.size_text}, from {model.page}",
        f"Licence: {model.licence}",
        f"Commercial use: {model.commercial_use}",
        model.note,
    )
    return tuple(line for line in lines if line)


class PORTRAIT_PT_models(bpy.types.Panel):
    """The backend's models."""

    bl_idname = "PORTRAIT_PT_models"
    bl_label = "Models"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = TAB
    bl_parent_id = "PORTRAIT_PT_backend"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        """Draw a box per model; nothing of this is needed for the default prior."""
        session = runtime.session()
        if not session.models:
            self.layout.label(text="Start the backend to see its models" if not session.backend.connected else "No list from this backend")
            return
        for model in session.models:
            draw_model(self.layout.box(), model)
        self.layout.operator("portrait.models_refresh", icon="FILE_REFRESH")


def draw_model(box: bpy.types.UILayout, model: Any) -> None:
    """Draw one model."""
    row = box.row(align=True)
    row.label(text=f"{model.name}: {state_text(model)}", icon="CHECKMARK" if model.converted else ICONS.get(model.state, "BLANK1"))
    for line in facts(model):
        backend_box.paragraph(box, line)
    row = box.row(align=True)
    row.operator("wm.url_open", text="Licence", icon="URL").url = model.licence_page
    if model.command:
        row.operator("portrait.copy_command", text="Copy Command", icon="COPYDOWN").command = model.command


class PORTRAIT_OT_models_refresh(bpy.types.Operator):
    """Ask the backend again which models are there"""

    bl_idname = "portrait.models_refresh"
    bl_label = "Refresh"

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

    command: bpy.props.StringProperty(options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Put it on the clipboard and say it."""
        context.window_manager.clipboard = self.command
        self.report({"INFO"}, f"Copied: {self.command}")
        return {"FINISHED"}


CLASSES = (PORTRAIT_OT_models_refresh, PORTRAIT_OT_copy_command, PORTRAIT_PT_models)
