"""HTTP routes of the protocol, one module a section of docs/protocol.md."""
