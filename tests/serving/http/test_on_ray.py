"""The server on a real local cluster, of two replicas: languages keep to replicas, and no request is lost with one."""

import asyncio
import os
import random
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray", exc_type=ImportError)
serve = pytest.importorskip("ray.serve", exc_type=ImportError)
httpx = pytest.importorskip("httpx")

from ray.serve.exceptions import DeploymentUnavailableError  # noqa: E402

from nllb_prune.corpus import ParallelText  # noqa: E402
from nllb_prune.errors import Unavailable, UsageError  # noqa: E402
from nllb_prune.generation.search import SearchSettings  # noqa: E402
from nllb_prune.masks import MaskSet  # noqa: E402
from nllb_prune.model.source import embedded_masks, embedded_text  # noqa: E402
from nllb_prune.serving.http.backend import Ask  # noqa: E402
from nllb_prune.serving.on_ray import app  # noqa: E402
from nllb_prune.serving.on_ray.backend import RayBackend  # noqa: E402
from nllb_prune.serving.on_ray.replica import Replica, languages_held  # noqa: E402
from nllb_prune.serving.on_ray.settings import read_settings  # noqa: E402
from nllb_prune.serving.translator import Translator  # noqa: E402

APPLICATION = "translation"
MEMORY = "80MB"  # decoders of about half of the languages
LIMITS = {"characters": "none", "deadline": 600.0}  # of requests that take longer than is waited for their end


class Cluster:
    """A server on Ray, deployed from a configuration as `serve run server.yaml` does it."""

    def __init__(self, folder):
        self.port = _free_port()
        self.masks = folder / "masks.json"
        self.masks.write_bytes(embedded_masks().read_bytes())
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
        self.deploy(self.masks)
        self.backend = RayBackend(serve.get_deployment_handle("Replica", APPLICATION))

    def deploy(self, masks):
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": APPLICATION,
            "import_path": "nllb_prune.serving.on_ray:app",
            "args": {"model": "mini", "masks": "none", "memory": MEMORY, "replicas": 2, "cpus": 0.1, **LIMITS},
            "deployments": [
                {"name": "Replica", "user_config": {"masks": str(masks)}, "graceful_shutdown_wait_loop_s": 0.1},
                {"name": "Gateway", "graceful_shutdown_wait_loop_s": 0.1},
            ],
        }
        http = {"host": "127.0.0.1", "port": self.port}
        config = ServeDeploySchema.model_validate({"applications": [application], "http_options": http})
        _get_global_client().deploy_apps(config)
        start = time.monotonic()
        while (found := serve.status().applications[APPLICATION]).status != "RUNNING":
            assert time.monotonic() < start + 240, found
            assert found.status == "DEPLOYING", found
            time.sleep(0.1)

    async def sentences(self):
        """How many each replica was given, by name."""
        return Counter({state.name: state.figures.sentences for state in await self.backend.states()})

    async def masks_of_all(self):
        return {one.masks for one in await self.backend._of_all("describe")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
        _system_config={"worker_niceness": 0},  # else other tests beside this one would leave it no time
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield Cluster(tmp_path_factory.mktemp("cluster"))
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def text():
    return ParallelText.open(embedded_text(), "test")


@pytest.fixture(scope="module")
def local():
    with Translator("mini", embedded_masks()) as translator:
        yield translator


def ask(text, source, target, **named):
    return Ask(texts=(text,), sources=(source,), target=target, **named)


def asks(text, count):
    """Requests in all directions, in turns."""
    codes = text.languages
    found = []
    for n in range(count):
        source, target = codes[n % len(codes)], codes[(n + 1 + n // len(codes) % (len(codes) - 1)) % len(codes)]
        found.append(ask(text.lines(source)[n % 50], source, target))
    return found


def translated(local, requests):
    texts, sources, targets = zip(*((*each.texts, *each.sources, each.target) for each in requests), strict=True)
    return [found.text for found in local.translate(texts, sources, targets)]


async def gather(backend, requests):
    return [found[0].text for found in await asyncio.gather(*map(backend.translate, requests))]


def test_languages_keep_to_replicas(cluster, text):
    """The first requests of a language may go anywhere; once Ray knows who has it, no request goes elsewhere."""

    async def counted(language):
        source = "eng_Latn" if language != "eng_Latn" else "deu_Latn"
        request = ask("Good morning", source, language)
        await cluster.backend.translate(request)
        await asyncio.sleep(1)  # replicas report every 0.1 seconds
        before = await cluster.sentences()
        for _ in range(5):
            await cluster.backend.translate(request)
        await asyncio.gather(*(cluster.backend.translate(request) for _ in range(15)))
        return (await cluster.sentences()) - before

    async def counted_all():
        return {language: await counted(language) for language in text.languages[:6]}

    counts = asyncio.run(counted_all())
    shown = {language: sorted(by_replica.values(), reverse=True) for language, by_replica in counts.items()}
    print(shown)
    assert all(sum(by_replica.values()) == 20 for by_replica in counts.values())
    assert sum(max(by_replica.values()) for by_replica in counts.values()) >= 0.75 * 120, shown  # chance: 0.6
    assert len({max(by_replica, key=by_replica.get) for by_replica in counts.values()}) == 2, shown


def test_answers_are_those_of_one_process(cluster, text, local):
    requests = asks(text, 60)
    assert asyncio.run(gather(cluster.backend, requests)) == translated(local, requests)


def test_what_is_wrong_arrives_as_such(cluster):
    with pytest.raises(UsageError, match=r"^`target` must be one of .*, but is fra_Latn instead\.$"):
        asyncio.run(cluster.backend.translate(ask("Good morning", "eng_Latn", "fra_Latn")))
    with pytest.raises(UsageError, match=r"^`beams` must be at most 4"):
        asyncio.run(cluster.backend.translate(ask("Hi", "eng_Latn", "deu_Latn", search=SearchSettings(beams=5))))


def test_streams(cluster, text, local):
    request = ask("\n".join(text.lines("eng_Latn")[:4]), "eng_Latn", "spa_Latn")

    async def parts():
        return [part async for part in cluster.backend.stream(request)]

    *found, whole = asyncio.run(parts())
    assert len(found) >= 4
    assert "".join(found) == whole.text == translated(local, [request])[0]


def test_who_leaves_takes_the_work_along(cluster, text):
    texts = tuple(text.lines("eng_Latn")[:200]) * 80  # which would take far longer than is waited here
    search = SearchSettings(beams=4)
    request = Ask(texts=texts, sources=("eng_Latn",) * len(texts), target="rus_Cyrl", search=search)

    async def left():
        task = asyncio.create_task(cluster.backend.translate(request))
        await _until(lambda states: any(state.figures.waiting for state in states), cluster)
        task.cancel()
        await _until_idle(cluster)
        stream = cluster.backend.stream(ask("\n".join(texts), "eng_Latn", "rus_Cyrl", search=search))
        await anext(stream)
        await stream.aclose()
        await _until_idle(cluster)

    asyncio.run(left())


def test_over_http(cluster, text, local):
    base = f"http://127.0.0.1:{cluster.port}"
    request = ask(text.lines("eng_Latn")[3], "eng_Latn", "deu_Latn")
    with httpx.Client(base_url=base, timeout=120) as client:
        _until_ready(client)
        body = {"q": request.texts[0], "source": "en", "target": "de"}
        assert client.post("/translate", json=body).json()["translatedText"] == translated(local, [request])[0]
        with client.stream("POST", "/v1/stream", json=body) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.read().decode().rpartition("event: done")[1]
        assert len(client.get("/v1/residency").json()["replicas"]) == 2
        assert client.get("/metrics").text.count("nllb_prune_sentences_total{") == 2
        refused = client.post("/translate", json={**body, "target": "xx"})
        assert (refused.status_code, list(refused.json())) == (400, ["error"])


def test_a_client_that_goes_takes_the_work_along(cluster, text):
    base = f"http://127.0.0.1:{cluster.port}"
    with httpx.Client(base_url=base, timeout=120) as client:
        _until_ready(client)
    body = {"source": "eng_Latn", "target": "rus_Cyrl", "alternatives": 3}
    lines = text.lines("eng_Latn")[:200]  # again and again: far more than can be translated while it is waited here

    async def gone():
        async with httpx.AsyncClient(base_url=base, timeout=120) as client:
            several = {**body, "q": ["\n".join(lines)] * 80}
            request = asyncio.create_task(client.post("/translate", json=several))
            await _until(lambda states: any(state.figures.waiting for state in states), cluster)
            request.cancel()
            await _until_idle(cluster)
            long = {**body, "q": "\n".join(lines * 80)}
            async with client.stream("POST", "/v1/stream", json=long) as stream:
                await anext(stream.aiter_lines())
                assert any(state.figures.waiting for state in await cluster.backend.states())
            await _until_idle(cluster)

    asyncio.run(gone())


def test_no_request_is_lost_with_a_replica(cluster, text, local):
    requests = asks(text, 200)
    wanted = translated(local, requests)

    async def all_while_one_dies():
        before = await cluster.sentences()
        tasks = [asyncio.create_task(cluster.backend.translate(each)) for each in requests]
        await _until(lambda states: sum(s.figures.sentences for s in states) > sum(before.values()) + 20, cluster)
        killed = _replica_processes()[0]
        os.kill(killed, signal.SIGKILL)
        under_way = sum(not task.done() for task in tasks)
        found = [result[0].text for result in await asyncio.gather(*tasks)]
        await _until(lambda states: len({state.name for state in states} - set(before)) == 1, cluster, seconds=120)
        return found, under_way, len(await cluster.sentences())

    found, under_way, replicas = asyncio.run(all_while_one_dies())
    assert under_way > 20
    assert found == wanted
    assert replicas == 2


def test_masks_change_while_it_runs(cluster, text, tmp_path):
    """Ray's own way, by the configuration, and by reading the file again; replicas stay those they are."""

    async def now():
        return await cluster.masks_of_all(), set(await cluster.sentences())

    (first,), names = asyncio.run(now())
    other = tmp_path / "other.json"
    _fewer(MaskSet.load(cluster.masks)).save(other)
    cluster.deploy(other)
    (second,), same = asyncio.run(now())
    assert second != first
    assert same == names

    other.write_bytes(cluster.masks.read_bytes())
    assert asyncio.run(cluster.backend.reload()).masks == first
    assert asyncio.run(now()) == ({first}, names)

    other.write_text("{}")
    with pytest.raises(UsageError):
        asyncio.run(cluster.backend.reload())
    assert asyncio.run(now()) == ({first}, names)
    assert asyncio.run(gather(cluster.backend, asks(text, 5)))


def test_a_replica_that_cannot_translate_is_not_well(monkeypatch):
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    replica = Replica("mini")
    with pytest.raises(Unavailable, match="`user_config` must have"):
        asyncio.run(replica.check_health())
    asyncio.run(replica.reconfigure({"masks": None}))
    asyncio.run(replica.check_health())
    replica._translator.close()
    with pytest.raises(Unavailable, match="has ended"):
        asyncio.run(replica.check_health())


def test_as_many_languages_are_kept_as_decoders_fit(local):
    targets = {target for _, target in local.directions}
    plan = local.plan
    assert languages_held(plan, local.sides(), targets) == len(targets)
    largest = max(sum(map(len, side.mask)) for side in local.sides() if side.stack == "decoder") // 3
    small = replace(plan, slots={**plan.slots, "decoder": (largest,) * 3})
    assert languages_held(small, local.sides(), targets) == 1


class Scripted:
    """Stands for the handle of a deployment whose answers are written down: values, errors, and parts in lists."""

    def __init__(self, *answers):
        self.answers, self.asked, self.cancelled = list(answers), 0, 0

    def options(self, **_):
        return self

    @property
    def translate(self):
        return self

    @property
    def stream(self):
        return self

    def remote(self, _):
        self.asked += 1
        return _Response(self, self.answers.pop(0))


class _Response:
    def __init__(self, replicas, answer):
        self._replicas, self._answer = replicas, answer

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def __aiter__(self):
        for part in self._answer:
            if isinstance(part, Exception):
                raise part
            yield part

    def cancel(self):
        self._replicas.cancelled += 1


DIED = ray.exceptions.ActorDiedError()
WRONG = ray.exceptions.RayTaskError(
    "translate", "Traceback ...", UsageError("`target` must be ...")
).as_instanceof_cause()


@pytest.mark.parametrize(
    ("answers", "found", "asked"),
    [
        (["whole"], "whole", 1),
        ([DIED, "whole"], "whole", 2),
        ([ray.exceptions.ActorUnavailableError("it may be back", None), "whole"], "whole", 2),
        ([DIED, DIED, "whole"], Unavailable, 2),
        ([WRONG, "whole"], UsageError, 1),
        ([DIED, WRONG], UsageError, 2),
        ([ZeroDivisionError(), "whole"], ZeroDivisionError, 1),
        ([DeploymentUnavailableError(None), "whole"], Unavailable, 1),
    ],
)
def test_what_a_replica_took_along_is_asked_of_another_once(answers, found, asked):
    replicas = Scripted(*answers)
    request = ask("Hi", "eng_Latn", "deu_Latn")
    if isinstance(found, str):
        assert asyncio.run(RayBackend(replicas).translate(request)) == found
    else:
        with pytest.raises(found) as error:
            asyncio.run(RayBackend(replicas).translate(request))
        assert type(error.value) is found
    assert replicas.asked == asked


@pytest.mark.parametrize(
    ("answers", "parts", "error"),
    [
        ([["a", "b"]], "ab", None),
        ([[DIED], ["a", "b"]], "ab", None),
        ([[DIED], [DIED], ["a", "b"]], "", Unavailable),
        ([["a", DIED], ["a", "b"]], "a", Unavailable),
        ([[WRONG], ["a"]], "", UsageError),
    ],
)
def test_a_stream_starts_again_only_before_its_first_part(answers, parts, error):
    found = []

    async def listen():
        async for part in RayBackend(Scripted(*answers)).stream(ask("Hi", "eng_Latn", "deu_Latn")):
            found.append(part)

    if error is None:
        asyncio.run(listen())
    else:
        with pytest.raises(error):
            asyncio.run(listen())
    assert "".join(found) == parts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"`model` must be given"),
        ({"model": "mini", "replica": "2"}, r"`replica` must be one of model, masks, .*refresh\.$"),
        ({"model": "mini", "rows": "many"}, r"`rows` must be a whole number, but is many instead\.$"),
        ({"model": "mini", "replicas": "3-2"}, r"`replicas` must be a whole number from 1, or two as in 1-4"),
        ({"model": "mini", "full": "yes"}, r"`full` must be true or false"),
        ({"model": "tiny"}, r"`model` must be mini, .* but is `tiny` instead\.$"),
        ({"model": "mini", "masks": "missing.json"}, r"missing\.json"),
        ({"model": "mini", "characters": 0}, r"`characters` must be a whole number from 1"),
    ],
)
def test_wrong_arguments_get_one_line(given, message):
    with pytest.raises(UsageError, match=message) as error:
        app(given)
    assert "\n" not in str(error.value)


def test_arguments_of_a_command_are_read():
    settings, server = read_settings(
        {"model": "mini", "replicas": "1-4", "pinned": "eng_Latn,deu_Latn", "gpus": "0.5", "characters": "none"}
    )
    assert (settings.bounds, settings.pinned, settings.gpus, settings.languages) == (
        (1, 4),
        ("eng_Latn", "deu_Latn"),
        0.5,
        None,
    )
    assert (server.characters, server.texts) == (None, 128)


async def _until(true, cluster, seconds=120.0):
    start = time.monotonic()
    while not true(await cluster.backend.states()):
        assert time.monotonic() < start + seconds
        await asyncio.sleep(0.02)


async def _until_idle(cluster, seconds=60.0):
    """Wait until nothing waits, and for a while nothing has: the parts of a request come one after the other."""
    start, idle = time.monotonic(), 0
    while idle < 20:
        assert time.monotonic() < start + seconds
        await asyncio.sleep(0.02)
        idle = 0 if any(state.figures.waiting for state in await cluster.backend.states()) else idle + 1


def _until_ready(client):
    start = time.monotonic()
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < start + 120
        time.sleep(0.1)


def _replica_processes():
    """Those of this test's own cluster: Ray's main process is a child of this one, and they are children of that."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_text()
            parent = _parent(int(folder.name))
            if title.startswith(f"ray::ServeReplica:{APPLICATION}:Replica") and _parent(parent) == os.getpid():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def _parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _free_port():
    """Outside the system's own range, of which any connection may take one before it is listened on."""
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _fewer(masks):
    """The same with half of the experts."""
    halves = {
        stack: {key: tuple(ids[::2] for ids in mask) for key, mask in of_keys.items()}
        for stack, of_keys in masks.masks.items()
    }
    return replace(masks, masks=halves)
