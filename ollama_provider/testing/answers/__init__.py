"""The usual answers, made without a model: texts, JSON that satisfies a schema, summaries, tokens, vectors."""
