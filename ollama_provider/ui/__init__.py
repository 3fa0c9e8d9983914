"""The page *Ollama* in Airflow's UI, from Airflow 3.1 on. It only reads."""
