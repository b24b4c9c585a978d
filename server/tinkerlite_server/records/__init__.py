"""The metadata's records, one module a table: what is asked of each, and what changes it."""
