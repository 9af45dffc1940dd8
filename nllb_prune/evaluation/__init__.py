"""Masks to scores: translations, chrF++ and BLEU, over-generation, significance."""
