"""The README's moving picture: a table is painted, and the second night buys only what changed."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright")

from PIL import Image, ImageDraw, ImageFont
from rungen_emulator import Emulator

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import EXAMPLES, AirflowInstance
from demo import change_two_colors, format_summary

from browser.conftest import note_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DAG_ID, TASK_ID = "rungen_catalog", "paint"
# The page shows it, so the README does.
FOLDER = Path("/tmp/catalog")  # noqa: S108 - the test makes and removes it
FONT = "/usr/share/fonts/truetype/liberation/LiberationSans-Bold.ttf"
WIDTH, HEIGHT, BAR = 880, 620, 48
MAX_BYTES = 2_500_000


class Film:
    """Frames with a caption each, which become a moving picture."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.seconds: list[float] = []

    def shoot(self, caption: str, seconds: float) -> None:
        """Add what the page shows for some seconds."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB").resize((WIDTH, HEIGHT))
        frame = Image.new("RGB", (WIDTH, HEIGHT + BAR), "#0f172a")
        frame.paste(shot, (0, 0))
        text = ImageDraw.Draw(frame)
        text.text((20, HEIGHT + 11), caption, fill="white", font=ImageFont.truetype(FONT, 22))
        self.frames.append(frame.quantize(128))
        self.seconds.append(seconds)

    def save(self, path: Path) -> None:
        first, *others = self.frames
        durations = [round(1000 * each) for each in self.seconds]
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowInstance]:
    home = tmp_path_factory.mktemp("airflow")
    FOLDER.mkdir()
    try:
        with Emulator(job_seconds=5, workers=3) as emulator:
            environment = {
                "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
                "RUNGEN_FOLDER": str(FOLDER),
            }
            with AirflowInstance(home, EXAMPLES, environment=environment) as instance:
                instance.unpause(DAG_ID)
                yield instance
    finally:
        shutil.rmtree(FOLDER)


def test_a_tour_of_ten_seconds(page: Page, airflow: AirflowInstance, tmp_path: Path) -> None:
    film = Film(page)
    page.set_viewport_size({"width": 1100, "height": 775})
    page.goto(f"{airflow.url}/dags/{DAG_ID}/code")
    page.get_by_text("RunGenRunTableOperator").first.wait_for()
    film.shoot("A table of products is one task", 1.6)

    run_id = airflow.trigger(DAG_ID)
    results = f"{airflow.url}/rungen/dags/{DAG_ID}/runs/{run_id}/tasks/{TASK_ID}/-1"
    seen: list[str] = []

    def shoot_progress() -> None:
        page.goto(results)
        if (found := re.search(r"\d+ of \d+ done", page.inner_text("body"))) and found[0] not in seen:
            seen.append(found[0])
            film.shoot("One job for each row, without a worker slot", 0.8)

    assert airflow.wait_for_run(DAG_ID, run_id, 180, shoot_progress) == "success"
    page.goto(results)
    page.wait_for_load_state("networkidle")
    film.shoot("The pictures are in your storage, and in Airflow", 2.2)

    changed = change_two_colors(tmp_path / "changed.csv")
    run_id = airflow.trigger(DAG_ID, {"table": str(changed)})
    assert airflow.wait_for_run(DAG_ID, run_id, 180) == "success"
    summary = format_summary(airflow.xcom(DAG_ID, run_id, TASK_ID))
    assert "2 bought" in summary
    page.goto(f"{airflow.url}/rungen/dags/{DAG_ID}/runs/{run_id}/tasks/{TASK_ID}/-1")
    page.wait_for_load_state("networkidle")
    film.shoot(f"The second night: {summary}", 2.8)

    assert len(seen) > 1
    target = ROOT / "docs" / "images" / "tour.gif"
    film.save(target)
    note_pictures()
    assert target.stat().st_size < MAX_BYTES
