"""Stage 2: portrait geometry restoration with a diffusion prior (Eqs. 4-6)."""
