"""Which request is sent next, and how many at once: decisions, and the workers that carry them out."""
