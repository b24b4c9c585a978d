"""E1: OPD against more SFT and RL, from one checkpoint."""
