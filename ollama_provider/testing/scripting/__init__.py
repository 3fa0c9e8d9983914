"""What a test tells the stand-in to do instead of its usual answer: scripted answers, delays and faults."""
