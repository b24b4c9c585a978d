"""V1: past the post: variants of distillation against the plain one, at equal rollouts."""
