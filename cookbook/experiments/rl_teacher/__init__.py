"""E4: RL makes a teacher, OPD copies it into the base model."""
