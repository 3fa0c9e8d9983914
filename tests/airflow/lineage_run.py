"""Run the DAGs of a file, their tasks in this process, as `airflow dags test` does."""

import sys

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before 3.2
    from airflow.models.dagbag import DagBag

if __name__ == "__main__":
    bag = DagBag(dag_folder=sys.argv[1])
    assert not bag.import_errors, bag.import_errors
    for dag in bag.dags.values():
        dag.test()
