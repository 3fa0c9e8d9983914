"""Many prompts in, many results out: nothing lost, nothing made up. Knows Ollama, and nothing of Airflow."""
