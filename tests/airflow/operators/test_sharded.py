"""What comes before and after a sharded batch: each way to say so in a DAG holds for the shards and for the merge."""

import pytest
from airflow.providers.common.compat.sdk import DAG, TaskGroup, chain, task

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.operators import OllamaBatchOperator
from ollama_provider.operators.batch import sharded

try:
    from airflow.sdk import Label
except ImportError:  # Airflow 2
    from airflow.utils.edgemodifier import Label


def batch(**arguments):
    """A sharded batch of two."""
    given = {"task_id": "all", "rows": "rows.jsonl", "output_path": "out", "model": "llama3.2"}
    return sharded(2, **{**given, **arguments})


@task
def extract() -> str:
    return "rows.jsonl"


@task
def publish(summary=None) -> None:
    pass


def upstream(dag: DAG) -> dict[str, set[str]]:
    """The tasks that each task waits for."""
    return {each.task_id: set(each.upstream_task_ids) for each in dag.tasks}


def before_and_after(before, group, after) -> None:
    before >> group >> after


def pointing_back(before, group, after) -> None:
    after << group << before


def by_chain(before, group, after) -> None:
    chain(before, group, after)


def by_methods(before, group, after) -> None:
    group.set_upstream(before)
    group.set_downstream(after)


def by_methods_of_the_others(before, group, after) -> None:
    before.set_downstream(group)
    after.set_upstream(group)


def in_lists(before, group, after) -> None:
    [before] >> group
    group >> [after]


def with_labels(before, group, after) -> None:
    before >> Label("rows") >> group >> Label("summary") >> after


@pytest.mark.parametrize(
    "connect",
    [
        before_and_after,
        pointing_back,
        by_chain,
        by_methods,
        by_methods_of_the_others,
        in_lists,
        with_labels,
    ],
)
def test_what_comes_before_holds_the_shards_back_and_what_comes_after_waits_for_the_merge(connect):
    """Shards that did not wait asked the rows of last night."""
    with DAG("any", schedule=None) as dag:
        connect(extract(), batch(), publish())

    assert upstream(dag) == {
        "extract": set(),
        "all.shards": {"extract"},
        "all.merge": {"all.shards"},
        "publish": {"all.merge"},
    }


def test_outputs_of_tasks_as_arguments():
    """Rows of another task, and the summary for the next one."""
    with DAG("any", schedule=None) as dag:
        publish(batch(rows=extract()).output)

    assert upstream(dag)["all.shards"] == {"extract"}
    assert upstream(dag)["all.merge"] == {"extract", "all.shards"}
    assert upstream(dag)["publish"] == {"all.merge"}


def test_mapped_tasks_before_and_after():
    """All of them."""
    with DAG("any", schedule=None) as dag:
        group = batch()
        extract.override(task_id="extract").partial().expand_kwargs([{}, {}]) >> group
        publish.expand(summary=group.output)

    assert upstream(dag)["all.shards"] == {"extract"}
    assert upstream(dag)["publish"] == {"all.merge"}


def test_two_batches_in_a_row_and_within_a_group():
    """The second waits for the merge of the first; names do not clash."""
    with DAG("any", schedule=None) as dag:
        with TaskGroup("night"):
            first = batch()
        first >> batch()

    assert upstream(dag)["all.shards"] == {"night.all.merge"}
    assert upstream(dag)["night.all.merge"] == {"night.all.shards"}


def test_failed_rows_of_all_shards():
    """The mode is the shards'; the merge merges."""
    with DAG("any", schedule=None) as dag:
        group = batch(mode="failed_only")

    assert group.merge.mode == "merge"
    assert dag.get_task("all.shards").partial_kwargs["mode"] == "failed_only"
    assert isinstance(group.merge, OllamaBatchOperator)


@pytest.mark.parametrize("count", [0, -1, 1.5, "many", True])
def test_a_number_of_shards_that_is_none(count):
    """Found when the file is parsed."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=r"^count: "):
        sharded(count, task_id="all", rows="rows.jsonl", output_path="out")
