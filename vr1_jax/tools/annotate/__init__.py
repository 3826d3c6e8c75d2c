"""Rationales for supervised training: sampled from a model, kept by rules."""
