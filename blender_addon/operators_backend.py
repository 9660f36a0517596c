"""Operators for the backend: install, start, stop, uninstall, its log, and the way to the preferences."""

import bpy

from portrait_shared.errors import PortraitDiffusionError

from . import runtime
from .core.manager import State


def refuse(operator: bpy.types.Operator, error: PortraitDiffusionError) -> set[str]:
    """Show an error as the operator's own and return CANCELLED."""
    operator.report({"ERROR"}, f"{error.message}. {error.hint}")
    return {"CANCELLED"}


class PORTRAIT_OT_backend_install(bpy.types.Operator):
    """Install the backend that came with this extension into an environment of its own; interrupted, it goes on where it was"""

    bl_idname = "portrait.backend_install"
    bl_label = "Install Backend"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Start the installation and return at once; in background mode wait for its end."""
        session = runtime.session()
        try:
            options = session.install_options()
        except PortraitDiffusionError as error:
            return refuse(self, error)
        if options.wheel_folder is None and not bpy.app.online_access:
            self.report({"ERROR"}, "Online access is off: allow it in the system preferences, or choose a folder of wheels")
            return {"CANCELLED"}
        session.backend.install(options)
        if bpy.app.background:
            session.backend.installer.wait()
            session.poll()
            if session.backend.state is State.BROKEN:
                self.report({"ERROR"}, session.backend.message)
                return {"CANCELLED"}
        return {"FINISHED"}


class PORTRAIT_OT_backend_cancel(bpy.types.Operator):
    """Stop installing; what is there already is used the next time"""

    bl_idname = "portrait.backend_cancel"
    bl_label = "Cancel"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Cancel the installation."""
        runtime.session().backend.installer.cancel()
        return {"FINISHED"}


class PORTRAIT_OT_backend_uninstall(bpy.types.Operator):
    """Remove the backend's environment from the disk; heads and their history stay"""

    bl_idname = "portrait.backend_uninstall"
    bl_label = "Uninstall Backend"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask first."""
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Stop it and remove it."""
        try:
            runtime.session().backend.uninstall()
        except PortraitDiffusionError as error:
            return refuse(self, error)
        return {"FINISHED"}


class PORTRAIT_OT_backend_start(bpy.types.Operator):
    """Start the backend, or connect to the remote one"""

    bl_idname = "portrait.backend_start"
    bl_label = "Start Backend"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin to start; the panel shows how it goes."""
        from . import preferences

        if preferences.needs_network() and not bpy.app.online_access:
            self.report({"ERROR"}, "Online access is off: allow it in the system preferences to reach another machine")
            return {"CANCELLED"}
        runtime.session().backend.start()
        return {"FINISHED"}


class PORTRAIT_OT_backend_stop(bpy.types.Operator):
    """Stop the backend (a remote one is only left); unfinished jobs go on at its next start"""

    bl_idname = "portrait.backend_stop"
    bl_label = "Stop Backend"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Stop or leave it."""
        runtime.session().backend.stop()
        return {"FINISHED"}


class PORTRAIT_OT_backend_log(bpy.types.Operator):
    """Open the backend's log: of its installation if that failed, else of its last run"""

    bl_idname = "portrait.backend_log"
    bl_label = "Show Log"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Open the file with the system's program for it."""
        session = runtime.session()
        broken = session.backend.state in (State.BROKEN, State.INSTALLING, State.ABSENT)
        path = session.folders.install_log if broken else session.folders.serve_log
        if not path.is_file():
            self.report({"WARNING"}, f"There is no log yet ({path})")
            return {"CANCELLED"}
        return bpy.ops.wm.path_open(filepath=str(path))


class PORTRAIT_OT_preferences(bpy.types.Operator):
    """Open this extension's preferences"""

    bl_idname = "portrait.preferences"
    bl_label = "Preferences"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Open the preferences window at this extension."""
        return bpy.ops.preferences.addon_show(module=__package__)


class PORTRAIT_OT_allow_online(bpy.types.Operator):
    """Allow Blender's online access"""

    bl_idname = "portrait.allow_online"
    bl_label = "Allow Online Access"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Use Blender's own switch, where the user may have forbidden it for the whole run (--offline-mode)."""
        if bpy.app.online_access:
            return {"FINISHED"}
        if bpy.app.online_access_override:
            self.report({"ERROR"}, "Blender was started with --offline-mode; start it without")
            return {"CANCELLED"}
        context.preferences.system.use_online_access = True
        return {"FINISHED"}


CLASSES = (
    PORTRAIT_OT_backend_install,
    PORTRAIT_OT_backend_cancel,
    PORTRAIT_OT_backend_uninstall,
    PORTRAIT_OT_backend_start,
    PORTRAIT_OT_backend_stop,
    PORTRAIT_OT_backend_log,
    PORTRAIT_OT_preferences,
    PORTRAIT_OT_allow_online,
)
