"""What a stranger stored or pushed to stall the API server is not parsed, and its page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import APP

from airflow_provider_rungen.plugins.bounded import MAX_VALUES, TooComplexError, parse_bounded
from airflow_provider_rungen.plugins.stored import StoredOutputs
from airflow_provider_rungen.plugins.threads import TooSlowError
from plugins.conftest import World, links

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]

# Lists in a list: a parser needs a second and 100 MB for each, and none of the checks between reads sees it.
BOMB = f"[{'[],' * 1_300_000}[]]"
HALF = "\ud800"
RECORD = {"connection": "none", "app": APP}


def stored_manifest(folder: Path, job_id: str, result: str = "null") -> Path:
    """Write the manifest of a job that has a picture."""
    folder /= job_id
    folder.mkdir()
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    entry = {"uri": f"{folder.as_uri()}/0.png", "at": "image", "size": 8, "sha256": "0" * 64}
    entry["content_type"] = "image/png"
    manifest = {"app_id": APP, "job_id": job_id, "status": "COMPLETED", "complete": True, "outputs": [entry]}
    path = folder / "manifest.json"
    path.write_text(f'{json.dumps(manifest)[:-1]}, "result": {result}}}')
    return path


def save_jobs(world: World, job_ids: list[str]) -> str:
    record = RECORD | {"destination": world.folder.as_uri()}
    return world.save(xcoms={"rungen_page": record, "job_ids": job_ids, "failed": []})


def test_json_of_many_values_is_not_parsed() -> None:
    few = f"[{'0,' * (MAX_VALUES - 1)}0]"
    assert len(parse_bounded(few)) == len(parse_bounded(few.encode())) == MAX_VALUES
    for text in (f"[{few}]", f"[{few}]".encode(), BOMB):
        with pytest.raises(TooComplexError):
            parse_bounded(text)


def test_an_xcom_of_many_values_is_not_parsed(world: World, request: pytest.FixtureRequest) -> None:
    bomb: list[list[Any]] = [[]] * 600_000
    path = world.save(xcoms={"rungen_page": RECORD, "job_ids": bomb})
    parsed = request.getfixturevalue("parsed")
    for each in (path, f"{path}/jobs/j/files/0", "/"):
        assert world.get(each).status_code in (200, 404)
    assert "The XCom job_ids is missing: it has more values" in world.get(path).text
    assert max(parsed) < 100_000


def test_a_manifest_of_many_values_is_not_parsed(world: World, request: pytest.FixtureRequest) -> None:
    stored_manifest(world.folder, "a")
    stored_manifest(world.folder, "b", BOMB)
    path = save_jobs(world, ["a", "b"])
    parsed = request.getfixturevalue("parsed")
    page = world.get(path)
    assert page.status_code == 200
    assert "The files of 1 job are missing" in page.text
    assert links(page.text, "/files/") == [f"{path}/jobs/a/files/0"]
    assert "The files of 1 job are missing" in world.get(f"{path}/jobs/b").text
    assert world.get(f"{path}/jobs/b/files/0").status_code == 404
    assert max(parsed) < 100_000


@pytest.mark.parametrize(
    "result", [json.dumps("x" * (3 << 20)), f"[{'[],' * 150_000}[]]"], ids=["bytes", "values"]
)
def test_the_manifests_of_a_page_are_bounded_together(tmp_path: Path, parsed: list[int], result: str) -> None:
    ids = [f"job-{number}" for number in range(30)]
    size = sum(stored_manifest(tmp_path, job_id, result).stat().st_size for job_id in ids)
    outputs = StoredOutputs(tmp_path.as_uri(), APP, 60)
    parsed.clear()
    found = outputs.manifests(ids)
    shown = [job_id for job_id, manifest in found.items() if manifest is not None]
    assert 0 < len(shown) < 10
    assert len(found) == 30, "the others are too large for the page"
    assert sum(parsed) < size / 5
    # on a page of its own it is shown
    assert StoredOutputs(tmp_path.as_uri(), APP, 60).manifests(["job-29"])["job-29"] is not None


def test_manifests_are_read_no_longer_than_somebody_waits(tmp_path: Path, parsed: list[int]) -> None:
    ids = [f"job-{number}" for number in range(100)]
    for job_id in ids:
        stored_manifest(tmp_path, job_id)
    outputs = StoredOutputs(tmp_path.as_uri(), APP, -1)
    parsed.clear()
    with pytest.raises(TooSlowError):
        outputs.manifests(ids)
    assert parsed == []


@pytest.mark.parametrize(
    "xcoms",
    [
        {"job_ids": [HALF, f"a{HALF}"]},
        {"job_id": HALF},
        {"failed": [{"index": 0, "error": HALF}], "job_ids": ["j"]},
        *({"rungen_page": RECORD | {name: HALF}} for name in ("connection", "app", "results", "destination")),
        {"rungen_page": RECORD | {"new_ledger": HALF, HALF: HALF}},
    ],
    ids=str,
)
def test_half_characters_in_xcoms_are_replaced(world: World, xcoms: dict[str, Any]) -> None:
    path = world.save(xcoms={"rungen_page": RECORD} | xcoms)
    page = world.get(path)
    assert page.status_code == 200
    assert {world.get(each).status_code for each in links(page.text, "/jobs/")} <= {200}
    assert world.get("/").status_code == 200


def test_half_characters_in_what_is_stored_are_replaced(world: World) -> None:
    stored_manifest(world.folder, "a", json.dumps({HALF: HALF}))
    path = save_jobs(world, ["a", HALF])
    for each in (path, f"{path}/jobs/a"):
        assert world.get(each).status_code == 200, each
