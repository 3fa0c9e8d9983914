"""What the stand-in answers without a model: texts, JSON that satisfies a schema, summaries, tokens, vectors."""
