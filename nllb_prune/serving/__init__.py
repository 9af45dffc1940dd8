"""Translation as a service: which experts are in memory when, and which sentences run together."""
