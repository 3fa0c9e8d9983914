"""The parts of Go's standard library that show in Ollama's replies: JSON, durations, times, template syntax."""
