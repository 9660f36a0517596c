"""Meshes and rasterising: pure functions on arrays."""
