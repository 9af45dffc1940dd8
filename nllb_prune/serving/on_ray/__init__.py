"""The translation server on a Ray cluster: `serve run nllb_prune.serving.on_ray:app model=mini replicas=2`."""

from nllb_prune.serving.on_ray.application import app

__all__ = ["app"]
