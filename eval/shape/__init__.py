"""Checkpoints of the shape of NLLB-MoE 54B, and everything that is done to a checkpoint, done to them and measured."""
