"""Operators on finished jobs and their heads: import, folder, delete, look at, frame size."""

import bpy
from bpy.props import IntProperty, StringProperty
from mathutils import Vector

from portrait_shared.errors import PortraitDiffusionError

from . import properties, runtime
from .operators_backend import refuse
from .operators_job import bring_in, finished
from .session import in_object_mode


class PORTRAIT_OT_history_import(bpy.types.Operator):
    """Bring this head into the scene, again if it was there before"""

    bl_idname = "portrait.history_import"
    bl_label = "Import"
    bl_options = {"REGISTER"}

    job: StringProperty()

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Let the session fetch it; it comes in by itself."""
        try:
            job = finished(self.job)
        except PortraitDiffusionError as error:
            return refuse(self, error)
        job.wanted, job.scene, job.error = True, context.scene.name, None
        session = runtime.session()
        if not job.here and not session.backend.connected:
            session.backend.start()
            self.report({"INFO"}, "The head lies on the backend, which is being started: import it when it runs")
            job.wanted = False
        elif job.head is None:
            session.fetch(job)
        return {"FINISHED"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Fetch, import and wait for it."""
        if not in_object_mode():
            self.report({"ERROR"}, "Leave the current mode first: heads come in in Object mode")
            return {"CANCELLED"}
        try:
            job = finished(self.job)
            job.wanted, job.scene, job.error = False, context.scene.name, None
            bring_in(job)
        except PortraitDiffusionError as error:
            return refuse(self, error)
        bpy.ops.ed.undo_push(message=f"Import {job.name}")
        return {"FINISHED"}


class PORTRAIT_OT_history_folder(bpy.types.Operator):
    """Show the folder with this head's files"""

    bl_idname = "portrait.history_folder"
    bl_label = "Show Folder"

    job: StringProperty()

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Open it with the system's file manager."""
        job = runtime.session().jobs.get(self.job)
        if job is None or not job.folder.is_dir():
            self.report({"WARNING"}, "Its files are not on this computer yet: import it first")
            return {"CANCELLED"}
        return bpy.ops.wm.path_open(filepath=str(job.folder))


class PORTRAIT_OT_history_delete(bpy.types.Operator):
    """Delete this job and its files, here and on the backend; heads in the scene stay"""

    bl_idname = "portrait.history_delete"
    bl_label = "Delete"

    job: StringProperty()

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask first."""
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Delete it."""
        session = runtime.session()
        job = session.jobs.get(self.job)
        if job is None:
            return {"CANCELLED"}
        if job.active:
            self.report({"ERROR"}, "It is still being made: cancel it first")
            return {"CANCELLED"}
        session.delete(job)
        return {"FINISHED"}


class PORTRAIT_OT_history_settings(bpy.types.Operator):
    """Take this head's settings and seed into the panel"""

    bl_idname = "portrait.history_settings"
    bl_label = "Use Its Settings"
    bl_options = {"REGISTER", "UNDO"}

    job: StringProperty()

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Set preset, settings and seed."""
        session, props = runtime.session(), context.scene.portrait
        job = session.jobs.get(self.job)
        if job is None:
            return {"CANCELLED"}
        flat = session.job_settings(job)
        props.preset = flat.pop("preset", props.preset)
        bpy.ops.portrait.reset_setting(path="")
        properties.assign(props.settings, {**flat, "seed": job.seed})
        return {"FINISHED"}


class PORTRAIT_OT_history_page(bpy.types.Operator):
    """Show other heads"""

    bl_idname = "portrait.history_page"
    bl_label = "Other Heads"

    step: IntProperty(default=1)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Turn the page."""
        session = runtime.session()
        session.history_page = max(0, session.history_page + self.step)
        return {"FINISHED"}


class PORTRAIT_OT_view_head(bpy.types.Operator):
    """Show the active head in the viewport: framed, with its texture"""

    bl_idname = "portrait.view_head"
    bl_label = "View Head"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """It needs a 3D viewport and an active object."""
        return context.area is not None and context.area.type == "VIEW_3D" and context.active_object is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Frame the head seen from the front, with its texture; alone (local view) where something around it hides it."""
        space, head = context.space_data, context.active_object
        head.select_set(True)
        if space.shading.type == "SOLID":
            space.shading.color_type = "TEXTURE"
        region = next(r for r in context.area.regions if r.type == "WINDOW")
        with context.temp_override(region=region):
            if space.local_view is None and is_enclosed(head, context.visible_objects):
                bpy.ops.view3d.localview(frame_selected=False)
                self.report({"INFO"}, "Another object encloses the head: local view, numpad / leaves it")
            bpy.ops.view3d.view_axis(type="FRONT")
            bpy.ops.view3d.view_selected(use_all_regions=False)
        return {"FINISHED"}


def is_enclosed(head: bpy.types.Object, others: list[bpy.types.Object]) -> bool:
    """Return whether the box of another object holds the middle of the head: a new file's cube is seven times its size."""
    middle = head.matrix_world @ (sum((Vector(corner) for corner in head.bound_box), Vector()) / 8)
    for other in others:
        if other is head or other.type not in ("MESH", "CURVE", "SURFACE", "META") or other.get("portrait_job"):
            continue
        local = other.matrix_world.inverted_safe() @ middle
        low, high = other.bound_box[0], other.bound_box[6]
        if all(low[axis] <= local[axis] <= high[axis] for axis in range(3)):
            return True
    return False


class PORTRAIT_OT_photo_size(bpy.types.Operator):
    """Give renders the photo's proportions, so that the head's camera frames exactly the photo"""

    bl_idname = "portrait.photo_size"
    bl_label = "Use Photo's Frame"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Set the render size to the photo's and look through its camera."""
        cameras = [o for c in context.object.users_collection for o in c.objects if "portrait_photo_size" in o] if context.object else []
        if not cameras:
            self.report({"ERROR"}, "The active object has no photo camera beside it")
            return {"CANCELLED"}
        width, height = cameras[0]["portrait_photo_size"]
        render = context.scene.render
        render.resolution_x, render.resolution_y, render.resolution_percentage = width, height, 100
        render.pixel_aspect_x = render.pixel_aspect_y = 1
        context.scene.camera = cameras[0]
        return {"FINISHED"}


CLASSES = (
    PORTRAIT_OT_history_import,
    PORTRAIT_OT_history_folder,
    PORTRAIT_OT_history_delete,
    PORTRAIT_OT_history_settings,
    PORTRAIT_OT_history_page,
    PORTRAIT_OT_view_head,
    PORTRAIT_OT_photo_size,
)
