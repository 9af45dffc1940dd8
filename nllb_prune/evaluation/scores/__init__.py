"""Outputs and references to scores, lengths and repetition, with the counts of each sentence."""
