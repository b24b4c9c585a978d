"""E6: SFT on its own samples spoils a model; OPD from itself does not."""
