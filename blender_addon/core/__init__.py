"""What the add-on does apart from Blender: nothing in here imports bpy, so plain tests can run all of it."""
