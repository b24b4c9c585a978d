"""Reference server of the Tinker protocol. See docs/architecture.md for the life of a request."""
