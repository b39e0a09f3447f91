"""LoRA adapters: reading their files, keeping the used ones, and applying them to the models."""
