"""What causes over-generation under pruning, and what cures it, on `mini` and a sibling trained without masking."""
