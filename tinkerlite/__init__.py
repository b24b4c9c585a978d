"""Client SDK of the Tinker protocol."""
