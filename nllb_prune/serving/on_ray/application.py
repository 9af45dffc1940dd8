"""The translation server as an application of Ray Serve: gateways that speak HTTP, and replicas that translate.

`serve run nllb_prune.serving.on_ray:app model=mini replicas=2`; Ray is installed with the extra `ray`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.source import model_folder
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.masks import masks_to_serve
from nllb_prune.serving.on_ray.backend import RayBackend
from nllb_prune.serving.on_ray.replica import Replica
from nllb_prune.serving.on_ray.settings import RaySettings, read_settings

_ALL = {
    "health_check_period_s": 2.0,
    "logging_config": {"enable_access_log": False},  # gateways log requests themselves
}
"""Of all deployments."""

_CALLS = 10_000
"""At once of a gateway, which has limits of its own."""

_OF_TRANSLATOR = (
    "memory",
    "pinned",
    "languages",
    "longest",
    "rows",
    "positions",
    "patience",
    "full",
    "dtype",
    "device",
)
"""Settings that go to `Translator` as they are."""


class Gateway:
    """Speaks HTTP, and has replicas translate.

    Args:
        replicas: Handle of their deployment.
        settings: Of the server.
        lid_model: File of a fastText model that finds out languages.
    """

    def __init__(self, replicas: Any, settings: ServerSettings, lid_model: str | None = None) -> None:
        self._backend, self._settings, self._lid_model = RayBackend(replicas), settings, lid_model

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application; Ray calls this in the process that runs it."""
        from nllb_prune.evaluation.detectors.identification import identifier_of
        from nllb_prune.serving.http.app import make_app
        from nllb_prune.serving.http.logs import start_log

        start_log("text")
        lid_model = None if self._lid_model is None else Path(self._lid_model)
        return make_app(self._opened, self._settings, identifier=identifier_of(lid_model))

    async def _opened(self) -> RayBackend:
        await self._backend.wait()
        return self._backend


def app(args: dict[str, Any]) -> Any:
    """Return the application, for `serve run` and for configuration files of Ray Serve.

    Args:
        args: Values by the names of `RaySettings` and `ServerSettings`.

    Raises:
        UsageError: on a name or a value that is not right, and on files that are not.
    """
    serve = _library()
    try:
        settings, server = read_settings(args)
        _check_files(settings)
    except UsageError as error:
        raise _one_line(error) from None
    server = replace(server, keys=None if server.keys is None else server.keys.resolve())
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        num_replicas=settings.gateways,
        ray_actor_options={"num_cpus": 0},  # as Ray's own processes for HTTP, so that there is always room
        max_ongoing_requests=_CALLS,
        graceful_shutdown_timeout_s=server.drain,
        **_ALL,
    )
    return gateway.bind(_replicas(serve, settings, server), server, _here(settings.lid_model))


def _replicas(serve: Any, settings: RaySettings, server: ServerSettings) -> Any:
    path, full = masks_to_serve(settings.model, settings.masks, full=settings.full, memory=settings.memory)
    masks = None if path is None else _here(str(path))
    deployment = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=settings.requests,
        user_config={"masks": masks},
        graceful_shutdown_timeout_s=server.drain,
        **_count(settings),
        **_ALL,
    )
    named = {name: getattr(settings, name) for name in _OF_TRANSLATOR} | {"beams": settings.most_beams, "full": full}
    return deployment.bind(_here(settings.model), kept_languages=settings.kept_languages, **named)


def _check_files(settings: RaySettings) -> None:
    """Refuse here what every replica would refuse, again and again."""
    model_folder(settings.model)
    masks, _ = masks_to_serve(settings.model, settings.masks, full=settings.full, memory=settings.memory)
    if masks is not None:
        MaskSet.load(masks)


def _count(settings: RaySettings) -> dict[str, Any]:
    least, most = settings.bounds
    if least == most:
        return {"num_replicas": least}
    bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": settings.rows}
    return {"autoscaling_config": bounds}


def _here(path: str | None) -> str | None:
    """Return where a path leads to from everywhere, if it is one: other processes work in other folders."""
    return path if path is None or not Path(path).exists() else str(Path(path).resolve())


def _one_line(error: UsageError) -> UsageError:
    """Return an error that `serve run` prints as one line, where it prints others with a traceback."""
    from click import ClickException

    class WrongArgumentError(UsageError, ClickException):
        def __init__(self, message: str) -> None:
            ClickException.__init__(self, message)

    return WrongArgumentError(str(error))


def _library() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise UsageError(
            "A server on a cluster needs the library ray with what it serves with, which is not installed. "
            "Run `pip install 'nllb-prune[ray,serve]'`."
        ) from None
    return serve
