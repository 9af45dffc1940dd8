"""Evaluation: suites, benchmarks against peers, and the recipe of the embedded models."""
