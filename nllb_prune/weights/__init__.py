"""Files of tensors: read lazily in every layout, written in shards that a killed run continues."""
