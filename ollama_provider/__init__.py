"""Apache Airflow provider for Ollama.

Imports nothing: Airflow reads the version here while it is still starting.
"""

__version__ = "0.1.0"
