"""Ollama's HTTP API, without Airflow."""
