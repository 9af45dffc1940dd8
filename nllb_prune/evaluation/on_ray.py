"""A work list over a Ray cluster: its workers compute items, this process writes their files.

Ray is installed with the extra `ray`.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from nllb_prune.errors import UsageError
from nllb_prune.worklist import HasId, Mapper

__all__ = ["LOCAL", "ray_mapper"]

LOCAL = "local"
"""The address that starts a cluster on this machine, for as long as the work takes."""

_TRIES = 2
_PATIENCE = 10.0  # seconds
_OBJECT_STORE = 256 * 2**20  # bytes, of a local cluster; results pass through it one at a time

Item = TypeVar("Item", bound=HasId)
Result = TypeVar("Result")


def ray_mapper(
    address: str,
    workers: int,
    make_compute: Callable[[], Callable[[Item], Result]],
    *,
    threads: int = 1,
    gpus: float = 0.0,
) -> Mapper[Item, Result]:
    """Return what `compute_items` takes as `mapper`, to compute items on a Ray cluster.

    Each worker is a process that calls `make_compute` once, where a model is loaded by its path or id, and is then
    handed one item at a time. The item of a worker that dies is tried once more, by a new worker. Workers that the
    cluster has no room for start when it has, or never.

    Args:
        address: `local`, or that of a running cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`. A connection that this
            process has already is used as it is.
        workers: how many.
        make_compute: returns what computes an item; picklable, as are items and results. The machines of a cluster must
            have this package in the same version, and the files that the factory names.
        threads: of each worker, which takes as many CPUs of the cluster.
        gpus: of each worker.

    Raises:
        UsageError: if the library is missing or a number is wrong; later, if the cluster cannot be reached or is too
            small, or an item's workers died twice. What computing an item raises ends the run as it would in one
            process.
    """
    for name, number in (("workers", workers), ("threads", threads)):
        if number < 1:
            raise UsageError(f"`{name}` must be 1 or more, but is {number} instead.")
    ray = _library()

    def mapper(items: Sequence[Item]) -> Generator[tuple[Item, Result], None, None]:
        count = min(workers, len(items))
        with _connected(ray, address, cpus=count * threads, gpus=count * gpus):
            _check_room(ray, address, cpus=threads, gpus=gpus)
            remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0)(_Worker)
            crew = _Crew(ray, lambda: remote.remote(make_compute, threads, os.getcwd()), count)
            try:
                yield from crew.compute(items)
            finally:
                crew.dismiss()

    return mapper


class _Worker:
    """A process of the cluster."""

    def __init__(self, make_compute: Callable[[], Callable[[Any], Any]], threads: int, folder: str) -> None:
        import torch

        if os.path.isdir(folder):  # so that relative paths mean what they mean to the process that hands out the work
            os.chdir(folder)
        torch.set_num_threads(threads)
        self._make_compute = make_compute
        self._compute: Callable[[Any], Any] | None = None

    def start(self) -> None:
        """Build the computation: apart from the constructor, whose errors would look like a death."""
        self._compute = self._make_compute()

    def compute(self, item: Any) -> Any:
        """Return the result of an item."""
        assert self._compute is not None
        return self._compute(item)


class _Crew:
    """Hands items to workers, and takes on a new worker for one that died on an item."""

    def __init__(self, ray: Any, hire: Callable[[], Any], count: int) -> None:
        self._ray, self._hire = ray, hire
        self._members: list[Any] = []
        self._busy: dict[Any, tuple[Any, Any]] = {}
        """Worker and item (None while it starts) by the reference of what it returns."""
        self._deaths: Counter[str] = Counter()
        for _ in range(count):
            self._take_on()

    def compute(self, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield items with their results as they are finished."""
        waiting = deque(items)
        while waiting or any(item is not None for _, item in self._busy.values()):
            (done,), _ = self._ray.wait(list(self._busy), num_returns=1)
            worker, item = self._busy.pop(done)
            try:
                result = self._returned(done)
            except self._ray.exceptions.RayActorError as death:
                self._bury(item, death)
                waiting.extendleft([] if item is None else [item])
                continue
            if waiting:
                following = waiting.popleft()
                self._busy[worker.compute.remote(following)] = (worker, following)
            if item is not None:
                yield item, result

    def dismiss(self) -> None:
        """End the workers."""
        for worker in self._members:
            self._ray.kill(worker)

    def _take_on(self) -> None:
        worker = self._hire()
        self._members.append(worker)
        self._busy[worker.start.remote()] = (worker, None)

    def _returned(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def _bury(self, item: Any, death: Exception) -> None:
        lines = str(death).strip().splitlines()  # what happened first, what a constructor raised last
        if item is not None:
            self._deaths[item.id] += 1
            if self._deaths[item.id] == _TRIES:
                raise UsageError(
                    f"`{item.id}` must be computed by a worker, but {_TRIES} workers died of it ({lines[0][:160]}). "
                    "Use fewer workers if memory ran out."
                ) from None
            self._take_on()
        elif not self._busy:
            raise UsageError(
                f"`workers` must start on the cluster, but all died before they did ({lines[-1][:160]}). "
                "The cluster's machines must have nllb-prune in this version, and memory for the model."
            ) from None


@contextmanager
def _connected(ray: Any, address: str, *, cpus: float, gpus: float) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the processes that Ray starts
        own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        own |= {"num_gpus": gpus} if gpus else {}
        own["_node_ip_address"] = "127.0.0.1"
    try:
        _reach(address)
        ray.init(address, logging_level="ERROR", log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"`address` must be {LOCAL}, auto, HOST:PORT or ray://HOST:PORT of a Ray cluster, "
            f"but {address} cannot be reached ({reason})."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Try the port of a cluster: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


def _check_room(ray: Any, address: str, *, cpus: float, gpus: float) -> None:
    """Refuse a cluster on which no worker would ever start."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise UsageError(
            f"The cluster at {address} must have a machine with {cpus} CPUs and {gpus:g} GPUs for a worker, "
            "but has none. Give workers less."
        )


def _library() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(
            "Working on a cluster needs the library ray, which is not installed. Run `pip install 'nllb-prune[ray]'`."
        ) from None
    return ray
