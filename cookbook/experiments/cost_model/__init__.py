"""E2: a cost model, and the post's 9x and 30x."""
