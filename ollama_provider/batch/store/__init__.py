"""The directory that remembers what was done: files or objects, locks, journal, checkpoints, manifest, shards."""
