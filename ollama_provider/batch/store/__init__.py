"""The directory that remembers what was done, so that a run can continue after a crash.

- `storage`: the directory itself, local or in an object store.
- `disk`: files that appear whole or not at all, and files that grow.
- `locks`: one run at a time in a directory.
- `keys`: which rows are the same work.
- `journal`: the outcomes of all runs, in files called parts.
- `lines`: an outcome as a line of a part.
- `json_values`: ids and columns of a row as JSON.
- `checkpoints`: when a part is forced to the disk, and the comparison of the model's digest before.
- `manifest`: ``batch.json``, with the settings and the pass over the input.
- `shards`: several runs in one directory, and their merge.
"""
