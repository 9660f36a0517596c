"""radiance."""
