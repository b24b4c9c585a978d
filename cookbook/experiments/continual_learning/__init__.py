"""E8: learn, recover, learn more: knowledge adds up and behaviour stays."""
