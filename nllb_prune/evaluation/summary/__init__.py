"""Results of directions to figures, verdicts and examples."""
