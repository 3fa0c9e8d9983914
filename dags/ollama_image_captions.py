"""A sentence about each picture in a folder, by a model that can see.

``pictures`` is a folder on any storage that the workers reach, ``at_most`` how many of it. Each picture is a mapped
task; ``captions`` puts all sentences together.
"""

from datetime import UTC, datetime
from pathlib import Path

import airflow
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task

from ollama_provider.operators import OllamaGenerateOperator


def is_picture(path: ObjectStoragePath) -> bool:
    """Look inside: Airflow 2 has files of that name which are some words of JavaScript."""
    with path.open("rb") as file:
        return file.read(4) == b"\x89PNG"


with DAG(
    "ollama_image_captions",
    description="A sentence about each picture in a folder",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    # Pictures that every machine with Airflow has; or your own: s3://aws_default@bucket/photos
    params={"model": "llava", "pictures": f"file://{Path(airflow.__file__).parent}", "at_most": 3},
    tags=["ollama"],
):

    @task
    def find(params=None) -> list[str]:
        """Return the paths of some pictures."""
        found = sorted(str(path) for path in ObjectStoragePath(params["pictures"]).rglob("*.png") if is_picture(path))
        return found[: params["at_most"]]

    @task
    def captions(paths: list[str], sentences: list[str]) -> dict[str, str]:
        """Put pictures and sentences together."""
        return dict(zip(paths, sentences, strict=True))

    # [start images]
    pictures = find()
    caption = OllamaGenerateOperator.partial(
        task_id="caption",
        model="{{ params.model }}",
        prompt="Describe this picture in one sentence.",
        # The paths come from another task. Nothing outside of this folder is read, whatever they are.
        images_from="{{ params.pictures }}",
    ).expand(images=pictures)
    # [end images]

    captions(pictures, caption.output)
