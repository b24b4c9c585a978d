"""E9: LoRA of several ranks against full fine-tuning."""
