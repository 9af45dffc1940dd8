"""What a server counts, in the form of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from nllb_prune.serving.http.backend import Description, ReplicaState
from nllb_prune.serving.http.pieces import Answered

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of one server; nothing is shared with another in the same process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and status", "route", "status")
        self.refused = self._counter("refused", "Requests refused before they were translated", "reason")
        self.texts = self._counter("texts", "Texts translated", "experts")
        self.languages = self._counter("language_texts", "Texts by source, and by target", "side", "language")
        self.characters = self._counter("characters", "Characters of the texts translated")
        self.tokens = self._counter("tokens", "Tokens of sentences read and written", "side")
        self.seconds = self._histogram("request_seconds", "From the first byte of a request to the last of its answer")
        self.stages = self._histogram(
            "stage_seconds",
            "Of a text: waiting (for its turn and its experts), translating; of a request: handling (all the rest)",
            "stage",
        )
        self.reloads = self._counter("reloads", "Masks read again", "outcome")
        self.under_way = Gauge(
            "nllb_prune_requests_under_way", "Requests that are not answered yet", registry=self._registry
        )
        self._backend = _BackendMetrics()
        self._registry.register(self._backend)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"nllb_prune_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        extra = labels or ("route",)
        return Histogram(f"nllb_prune_{name}", about, extra, buckets=_SECONDS, registry=self._registry)

    def translated(self, answers: Sequence[Answered], *, full: bool) -> None:
        """Take note of the texts of a request."""
        for answer in answers:
            work = answer.work
            self.texts.labels("all" if full else "kept").inc()
            self.languages.labels("source", answer.source).inc()
            self.languages.labels("target", answer.target).inc()
            self.tokens.labels("source").inc(work.source_tokens)
            self.tokens.labels("target").inc(work.target_tokens)
            self.stages.labels("waiting").observe(work.waited)
            self.stages.labels("translating").observe(work.translating)
        longest = max(answer.work.waited + answer.work.translating for answer in answers)
        self.stages.labels("handling").observe(max(0.0, answers[0].seconds - longest))

    def text(self, description: Description | None, states: Sequence[ReplicaState]) -> bytes:
        """Return everything, with what the backend does now."""
        self._backend.description, self._backend.states = description, states
        return generate_latest(self._registry)


class _BackendMetrics:
    """What translators count themselves, read when it is asked for."""

    def __init__(self) -> None:
        self.description: Description | None = None
        self.states: Sequence[ReplicaState] = ()

    def collect(self) -> Iterator[Metric]:
        if self.description is not None:
            yield InfoMetricFamily(
                "nllb_prune_served",
                "What is served",
                {
                    "model": self.description.model,
                    "masks": self.description.masks or "none",
                    "version": self.description.version,
                },
            )
        yield from self._counted()
        yield from self._present()

    def _counted(self) -> Iterator[Metric]:
        for name, about, field in (
            ("sentences", "Sentences submitted", "sentences"),
            ("steps", "Decoding steps; rows over steps is the mean batch", "steps"),
            ("rows", "Sentences in all decoding steps, added up", "rows"),
            ("swaps", "Times that experts were brought in", "swaps"),
            ("experts_moved", "Experts brought in", "experts_moved"),
            ("moved_bytes", "Bytes of experts brought in", "bytes_moved"),
        ):
            metric = CounterMetricFamily(f"nllb_prune_{name}", about, labels=["replica"])
            for state in self.states:
                metric.add_metric([state.name], getattr(state.figures, field))
            yield metric

    def _present(self) -> Iterator[Metric]:
        for name, about, field in (
            ("waiting_sentences", "Sentences submitted and not finished", "waiting"),
            ("in_flight_sentences", "Sentences in the batch now", "in_flight"),
            ("working_peak_bytes", "Most bytes set aside for caches and workspace at once", "working_peak"),
        ):
            metric = GaugeMetricFamily(f"nllb_prune_{name}", about, labels=["replica"])
            for state in self.states:
                metric.add_metric([state.name], getattr(state.figures, field))
            yield metric
        resident = GaugeMetricFamily(
            "nllb_prune_resident", "Whether a language's experts are in memory", labels=["replica", "stack", "language"]
        )
        memory = GaugeMetricFamily("nllb_prune_memory_bytes", "How the memory is divided", labels=["replica", "part"])
        for state in self.states:
            for side in state.sides:
                resident.add_metric([state.name, side.stack, side.key], float(side.resident))
            for part in ("fixed", "experts", "working"):
                memory.add_metric([state.name, part], getattr(state.plan, part) or 0)
        yield resident
        yield memory
