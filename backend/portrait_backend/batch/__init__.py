"""Many photos in one go: which ones with which settings, in processes of their own, and a summary at the end."""
