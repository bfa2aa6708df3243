"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from oneflow_dist.serving.engine import Work

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PACKS = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("oneflow_requests", "answers by path and status", ["path", "status"], registry=registry)
        self.documents = Counter(
            "oneflow_documents", "documents by how they ended", ["model", "end"], registry=registry
        )
        self.tokens = Counter("oneflow_tokens", "tokens written", ["model"], registry=registry)
        self.rows = Counter("oneflow_rows", "rows that a model computed", ["model"], registry=registry)
        self.steps = Histogram(
            "oneflow_step_seconds",
            "a step of all documents of a process",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.packs = Histogram(
            "oneflow_step_documents", "documents in a step", ["model"], buckets=PACKS, registry=registry
        )
        self.queued = Histogram(
            "oneflow_queued_seconds", "from a request to its begin", ["model"], buckets=SECONDS, registry=registry
        )
        self.whole = Histogram(
            "oneflow_document_seconds", "from a request to its end", ["model"], buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge("oneflow_waiting", "requests that wait", ["model"], registry=registry)
        self.writing = Gauge("oneflow_writing", "documents that are being written", ["model"], registry=registry)

    def watch(self, model: str, work: Work) -> None:
        """One step of a process."""
        self.steps.labels(model).observe(work.seconds)
        self.packs.labels(model).observe(work.num_documents)
        self.rows.labels(model).inc(work.num_rows)

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
