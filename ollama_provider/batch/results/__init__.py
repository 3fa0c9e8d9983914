"""What comes out of a batch.

* `files`: writes ``results.jsonl`` or ``results.parquet``, and ``failed.jsonl``, when all rows have an outcome.
* `json_lines`, `parquet`: the formats of these files; `order`: the rows of the input in their order.
* `table`: writes good results into the user's table while the batch runs.
* `progress`: counters, pace and the line of progress.
"""
