"""Colours for a head whose shape stands: what the photo saw of its surface, and plain regression of its colour planes."""
