"""The PyTorch engine: base models, LoRA runs, packed passes, continuous batching."""
