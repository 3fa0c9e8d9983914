"""Scripts of a test, used instead of the usual answer: answers, delays and faults."""
