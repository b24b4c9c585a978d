"""E7: where the teacher objects to a wrong answer."""
