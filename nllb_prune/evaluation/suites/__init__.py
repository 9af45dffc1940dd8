"""Named evaluations: what they are, what they need, and the masks they ask for."""
