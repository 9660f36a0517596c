"""Radiance field to textured mesh: extract, simplify, unwrap, bake, export."""
