"""Is a difference more than chance: resampling, two paired tests, and many tests at once."""
