"""The loop that many tutorials show; docs/howto/move-from-a-loop.md names its faults, and a test has each of them."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import requests
from airflow.providers.common.compat.sdk import DAG, task

# [start loop]
OLLAMA = "http://localhost:11434"
PROMPT = 'Answer {"mood": "good"} or {"mood": "bad"}:\n\n'

with DAG(
    "review_moods",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
):

    @task(retries=2)
    def moods() -> list[dict]:
        lines = Path("reviews.jsonl").read_text()
        done = []
        for line in lines.splitlines():
            row = json.loads(line)
            for _ in range(3):
                try:
                    reply = requests.post(
                        f"{OLLAMA}/api/generate",
                        json={
                            "model": "llama3.2",
                            "prompt": PROMPT + row["text"],
                            "stream": False,
                        },
                    )
                    text = reply.json()["response"]
                    found = text[text.index("{") :]
                    mood = json.loads(found)["mood"]
                    break
                except Exception:
                    time.sleep(1)
            else:
                mood = "neutral"
            done.append(row | {"mood": mood})
        return done

    moods()
# [end loop]
