"""Text to statistics: one observed pass."""
