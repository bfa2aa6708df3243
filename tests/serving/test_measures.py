"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from oneflow_dist.serving.engine import Work
from oneflow_dist.serving.measures import Measures


def read(measures: Measures) -> dict[str, float]:
    families = text_string_to_metric_families(measures.page().decode())
    samples = [sample for family in families for sample in family.samples]
    return {" ".join([each.name, *sorted(each.labels.values(), reverse=True)]): each.value for each in samples}


def test_steps_rows_and_packs_are_counted_by_model() -> None:
    measures = Measures()
    for count in (1, 3, 32):
        measures.watch("a", Work(seconds=0.02, num_rows=10 * count, num_documents=count))
    measures.watch("b", Work(seconds=2.0, num_rows=1, num_documents=1))
    found = read(measures)
    assert (found["oneflow_rows_total a"], found["oneflow_rows_total b"]) == (360, 1)
    assert found["oneflow_step_seconds_count a"] == 3
    assert found["oneflow_step_documents_bucket a 4.0"] == 2
    assert found["oneflow_step_seconds_bucket b 1.0"] == 0


def test_two_servers_in_one_process_count_for_themselves() -> None:
    one, other = Measures(), Measures()
    one.documents.labels("a", "done").inc()
    assert read(one)["oneflow_documents_total done a"] == 1
    assert "oneflow_documents_total done a" not in read(other)
