"""E5: one prompt is enough to copy most of a teacher."""
