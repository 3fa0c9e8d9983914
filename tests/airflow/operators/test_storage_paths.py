"""Which folder a DAG run has."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.operators._batch_run import results_directory
from ollama_provider.operators._storage_paths import earlier_run_folder_name, run_folder_name

USUAL = [
    "scheduled__2026-01-01T00:00:00+00:00",
    "manual__2026-01-01T00:00:00.123456+00:00",
    "manual__2026-01-01T00:00:00.123456+00:00_aB3dE6gH",
    "backfill__2026-01-01T02:00:00+02:00",
    "asset_triggered__2026-01-01T00:00:00+00:00_aB3dE6gH",
    "dataset_triggered__2026-01-01T00:00:00+00:00",
]
RUN_IDS = st.one_of(
    st.text(),
    st.text("ab.:+_-~/\\", max_size=6),
    st.sampled_from(USUAL),
    st.sampled_from(USUAL).map(run_folder_name),
    st.sampled_from(USUAL).map(lambda run_id: run_id.replace("+", ":")),
    st.text("a:", min_size=150, max_size=250),
)


@pytest.mark.parametrize("run_id", USUAL)
def test_what_airflow_names_by_itself_stays_readable_and_where_it_was(run_id):
    """Also for directories of earlier versions: a retry finds them."""
    assert run_folder_name(run_id) == earlier_run_folder_name(run_id) == run_id.replace(":", "_").replace("+", "_")


@pytest.mark.parametrize(
    ("run_id", "folder"),
    [
        ("..", "~2E."),
        (".", "~2E"),
        (".hidden", "~2Ehidden"),
        ("...", "~2E.."),
        ("a:b", "a~3Ab"),
        ("a+b", "a~2Bb"),
        ("a_b", "a_b"),
        ("a~3Ab", "a~7E3Ab"),
        ("../x", "~2E.~2Fx"),
        ("Prüfung", "Pr~C3~BCfung"),
        ("scheduled__2026-01-01T00_00_00_00_00", "~73cheduled__2026-01-01T00_00_00_00_00"),
        ("nightly-2026.01", "nightly-2026.01"),
        ("", "~"),
    ],
)
def test_all_others_can_be_read_too(run_id, folder):
    """Each special byte is replaced by its number."""
    assert run_folder_name(run_id) == folder


@given(st.lists(RUN_IDS, unique=True, max_size=8))
def test_no_two_runs_share_a_folder_and_none_leads_elsewhere(run_ids):
    """Whatever the run ids are."""
    folders = [run_folder_name(run_id) for run_id in run_ids]

    assert len(set(folders)) == len(run_ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*", folder) and len(folder) <= 240 for folder in folders)


def directory_of(tmp_path, run_id):
    instance = SimpleNamespace(run_id=run_id, map_index=-1)
    return results_directory(f"file://{tmp_path}/out", "run", instance, is_shard=False)


def test_results_of_an_earlier_version_are_logged(tmp_path, caplog):
    """They may be another run's, so they are not taken; and nothing is said where nothing is, or any more."""
    assert str(directory_of(tmp_path, "a:b")).endswith("/out/a~3Ab")
    assert str(directory_of(tmp_path, "..")).endswith("/out/~2E.")
    assert not caplog.messages
    (tmp_path / "out" / "a_b").mkdir(parents=True)

    assert directory_of(tmp_path, "a:b").name == "a~3Ab"

    assert f"{tmp_path}/out/a_b may have results of this run by an earlier version" in caplog.text
    caplog.clear()
    (tmp_path / "out" / "a_b").rename(tmp_path / "out" / "a~3Ab")
    directory_of(tmp_path, "a:b")
    assert not caplog.messages
