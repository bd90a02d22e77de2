"""README, CONTRIBUTING and the pages of ``docs/``: each block of code runs, each link leads somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import HOME
from rungen_emulator import Emulator
from rungen_emulator.__main__ import _parser as emulator_arguments
from rungen_emulator.faults import OPERATIONS
from rungen_emulator.faults import Fault as UsersFault
from rungen_emulator.operations import options

from airflow_provider_rungen import __version__, exceptions, get_provider_info, operators, sensors
from airflow_provider_rungen.hooks import RunGenHook

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from local_services import LocalPostgres, ServiceError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md", "llms.txt")
PAGES = [*(ROOT / name for name in FRONT), *sorted(DOCS.rglob("*.md"))]
LANGUAGES = {"python", "shell", "json", "sql", "text", "{toctree}", "{eval-rst}", "{include}"}
# They are not fetched: open a new one before you add it.
EXTERNAL = {
    "https://rungen.ai",
    "https://airflow.apache.org/docs/apache-airflow/stable/security/security_model.html",
    "https://json-schema.org",
    "https://github.com/apache/airflow/pull/73298",
    "https://github.com/apache/airflow/pull/72938",
    "https://github.com/apache/airflow/issues/67945",
    "https://img.shields.io/badge/Airflow-3.1_to_3.3-017CEE",
    "https://img.shields.io/badge/Python-3.11_to_3.13-3776AB",
    "https://img.shields.io/badge/License-Apache_2.0-4B5563",
}
PORT = "http://127.0.0.1:8765"
BUCKETS = ("s3://my-bucket", "s3://bucket", "s3://aws_default@pictures")
pytestmark = pytest.mark.timeout(600)  # the first test runs all pages: half a minute on an idle machine
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def way(self) -> str:
        """How a Python block is executed."""
        if re.search(r"^def test_", self.text, re.MULTILINE):
            return "test"
        return "dag" if re.search(r"^with DAG\(|^@dag", self.text, re.MULTILINE) else "script"

    @property
    def commands(self) -> list[list[str]]:
        """The commands that a shell would run, each split into words."""
        commands, command = [], ""
        for line in self.text.splitlines():
            command += line.removesuffix("\\") + ("" if line.endswith("\\") else "\n")
            if line.endswith("\\"):
                continue
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # a quotation that continues
                continue
            commands += [words] if words else []
            command = ""
        assert not command, f"{self.name} ends in the middle of a command"
        return commands


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^( *)(`{3,})(.*)\n((?:.*\n)*?)\1\2 *$", text, re.MULTILINE):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[3].split(" ")[0], dedent(found[4]))


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


# Without a word about which purchases count, a table buys each input once.
TABLES = [
    block
    for block in BLOCKS
    if block.language == "python"
    and block.way == "dag"
    and re.search(r"RunGenRunTableOperator(\.partial)?\(|@task.rungen_table", block.text)
]


def blocks(language: str) -> pytest.MarkDecorator:
    these = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", these, ids=[block.name for block in these])


def test_no_block_is_of_a_language_that_nothing_checks() -> None:
    assert {block.name: block.language for block in BLOCKS if block.language not in LANGUAGES} == {}
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)


# --- Python ---


class Shown:
    """All code of the pages, run in one process, since the start of Airflow takes longest."""

    def __init__(self, folder: Path, emulator: Emulator, warehouse: LocalPostgres | None) -> None:
        self.warehouse = warehouse
        self.plan: dict[str, tuple[str, Any]] = {}
        (folder / "dags").mkdir()
        for block in BLOCKS:
            if block.language == "python":
                self._add(block, folder)
            elif block.language == "shell":
                for number, words in enumerate(block.commands):
                    if words[0] == "airflow":
                        self.plan[f"{block.name} {number}"] = ("command", words[1:])
        (folder / "plan.json").write_text(json.dumps(self.plan))
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("show_docs.py")), str(folder)],
            env={**os.environ, **_environment(folder, emulator, warehouse)},
            cwd=HOME,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        self.log = done.stdout + done.stderr
        assert done.returncode == 0, self.log[-5000:]
        self.outcomes: dict[str, str] = json.loads((folder / "outcomes.json").read_text())
        #: How many jobs the two runs of a block's DAGs made.
        self.jobs: dict[str, list[int]] = json.loads((folder / "jobs.json").read_text())

    def _add(self, block: Block, folder: Path) -> None:
        text, place = block.text, folder / "buckets" / str(len(self.plan))
        if any(bucket in text for bucket in BUCKETS):
            _fill_bucket(place)  # one of its own, so that nothing is remembered at first
        text = text.replace('"/tmp', f'"file://{place}')
        for bucket in BUCKETS:
            text = text.replace(bucket, f"file://{place}")
        if block.way == "dag":
            ids = re.findall(r"DAG\(\s*\"(\w+)\"", text)
            assert ids, f"{block.name} has a DAG without a name in quotes"
            file = folder / "dags" / f"{ids[0]}.py"
            assert not file.exists(), f"another page has a DAG {ids[0]}"
            self.plan[block.name] = ("dag", f"dags.{ids[0]}")
        else:
            file = folder / f"{block.way}_{len(self.plan)}.py"
            self.plan[block.name] = (block.way, str(file))
        file.write_text(text)


def _fill_bucket(bucket: Path) -> None:
    """Write the files that the pages read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (bucket / "products").mkdir(parents=True)
    (bucket / "prompts").mkdir()
    prompts = [f"a postcard of day {day}" for day in range(3)]
    (bucket / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    (bucket / "prompts" / "0.csv").write_text("\n".join(["prompt", *prompts]))
    (bucket / "products.csv").write_text("sku,title\nA-1,kettle\nA-2,desk\n")
    for name, titles in {"0": ["kettle", "desk"], "1": ["boots", "lamp"]}.items():
        columns = {"sku": [f"{name}-{title}" for title in titles], "title": titles, "color": ["red", None]}
        pq.write_table(pa.table(columns), bucket / "products" / f"{name}.parquet")
    for country in ("de", "fr"):
        (bucket / "sold" / f"country={country}").mkdir(parents=True)
        columns = {"sku": ["A-1", country], "title": ["kettle", "desk"]}
        pq.write_table(pa.table(columns), bucket / "sold" / f"country={country}" / "0.parquet")


def _small_warehouse(folder: Path) -> Path:
    """Return a database of products, for a machine without PostgreSQL."""
    with closing(sqlite3.connect(folder / "warehouse.db")) as connection, connection:
        connection.execute("CREATE TABLE products AS SELECT 'A-1' AS sku, 'kettle' AS title, 'red' AS color")
    return folder / "warehouse.db"


def _fill_warehouse(warehouse: LocalPostgres) -> None:
    """Make the tables that the pages use, with products of which one has no title."""
    for block in BLOCKS:
        if block.language == "sql":
            warehouse.query(block.text)
    warehouse.query("INSERT INTO products SELECT n, 'kettle ' || n FROM generate_series(1, 11) n")
    warehouse.query("INSERT INTO products VALUES ('nameless', NULL)")


def _environment(folder: Path, emulator: Emulator, warehouse: LocalPostgres | None) -> dict[str, str]:
    service = emulator.service
    service.add_app("YOUR-APP-ID", workers=4)
    service.add_app("YOUR-OTHER-APP-ID", workers=4)
    service.add_app("YOUR-LLM-APP-ID", kind="text", workers=4, result='{"title": "A kettle"}')
    service.add_app("YOUR-NIGHTLY-APP-ID")
    connection = json.loads(emulator.airflow_connection())
    connection["extra"]["price"] = "1.20 USD/h"
    small = json.dumps({"conn_type": "sqlite", "host": str(_small_warehouse(folder))})
    return {
        "PYTEST_XDIST_WORKER": "",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "RUNGEN_EMULATOR": emulator.url,  # and not what the tests before these may reach
        "AIRFLOW_CONN_RUNGEN_DEFAULT": json.dumps(connection),
        "AIRFLOW_CONN_RUNGEN_MARKETING": emulator.airflow_connection(),
        "AIRFLOW_CONN_WAREHOUSE": warehouse.url.replace("+psycopg2", "") if warehouse else small,
    }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(job_seconds=0))
        warehouse = None
        with suppress(ServiceError):  # where it is not installed
            warehouse = stack.enter_context(LocalPostgres())
            _fill_warehouse(warehouse)
        yield Shown(tmp_path_factory.mktemp("pages"), emulator, warehouse)


def _skip_without_providers(block: Block, shown: Shown) -> None:
    for provider in re.findall(r"^from (airflow\.providers\.\S+) import", block.text, re.MULTILINE):
        pytest.importorskip(provider)
    if "airflow.providers.postgres" in block.text and shown.warehouse is None:
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")


@blocks("python")
def test_python_does_what_it_shows(block: Block, shown: Shown) -> None:
    _skip_without_providers(block, shown)
    failure = shown.outcomes[block.name]
    assert not failure, failure + shown.log.partition(f"===== {block.name}\n")[2][:20_000]


@pytest.mark.parametrize("block", TABLES, ids=[block.name for block in TABLES])
def test_a_second_run_of_a_table_buys_nothing(block: Block, shown: Shown) -> None:
    _skip_without_providers(block, shown)
    first, second = shown.jobs[block.name]
    assert first > 0
    assert second == 0


def test_the_second_night_of_the_warehouse_leaves_each_photo_and_its_cost(shown: Shown) -> None:
    [block] = [block for block in BLOCKS if '"photos_in_postgres"' in block.text]
    _skip_without_providers(block, shown)
    assert shown.warehouse is not None
    photos = shown.warehouse.query("SELECT sku, photo, cost >= 0 FROM photos")
    assert {sku for sku, _, _ in photos} == {str(n) for n in range(1, 12)}
    assert all(Path(photo.removeprefix("file://")).exists() for _, photo, _ in photos)
    assert {has_cost for _, _, has_cost in photos} == {"t"}
    assert shown.jobs[block.name] == [11, 0]
    [[sku, status, error]] = shown.warehouse.query("SELECT * FROM quarantine")
    assert (sku, status) == ("nameless", "refused")
    assert "prompt" in error
    # the second night wrote the quarantine again, and no photo
    compared = "SELECT max(photos.xmin::text::int) < min(quarantine.xmin::text::int) FROM photos, quarantine"
    assert shown.warehouse.query(compared) == [["t"]]


@blocks("python")
def test_each_dag_is_described(block: Block) -> None:
    calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
    dags = [call for call in calls if getattr(call.func, "id", "") in ("DAG", "dag")]
    missing = [{"description", "doc_md", "tags"} - {keyword.arg for keyword in dag.keywords} for dag in dags]
    assert not any(missing), missing
    assert not dags or ast.get_docstring(ast.parse(block.text)), "its doc_md is the text above it"


# --- shell and JSON ---


@blocks("shell")
def test_commands_exist(block: Block, request: pytest.FixtureRequest) -> None:
    assert block.commands
    for number, words in enumerate(block.commands):
        match words:
            case ["airflow", *_]:
                shown = request.getfixturevalue("shown")
                assert not shown.outcomes[f"{block.name} {number}"]
            case ["make", *targets]:
                assert set(targets) <= set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
            case ["pip", "install", *packages]:
                wheel = f"dist/airflow_provider_rungen-{__version__}-py3-none-any.whl"
                # what is installed already only gets its extra: no index needs to have a release of it
                assert set(packages) <= {"apache-airflow", ".", wheel, "airflow-provider-rungen[tables]"}
            case ["pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."]:
                pass
            case ["rungen-emulator", *arguments]:
                emulator_arguments().parse_args(arguments)
            case ["export", setting]:
                _check_setting(setting, request.getfixturevalue("monkeypatch"))
            case ["curl", "-s", *arguments]:
                _check_request(arguments)
            case ["pytest"]:
                pass
            case _:
                pytest.fail(f"{block.name} runs a command that nothing checks: {words}")


def _check_setting(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = setting.partition("=")
    if name.startswith("AIRFLOW_CONN_"):
        monkeypatch.setenv(name, value)
        assert RunGenHook(name.removeprefix("AIRFLOW_CONN_").lower()).settings.api_key == "YOUR-API-KEY"
    else:
        assert name in {"AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__TEST_CONNECTION"}


def _check_request(arguments: list[str]) -> None:
    *options, url = arguments
    given = dict(zip(options[::2], options[1::2], strict=True))
    body = given.pop("-d", None)
    method = given.pop("-X", "GET" if body is None else "POST")
    assert url.startswith(PORT), url
    assert not given
    with Emulator() as emulator:
        request = urllib.request.Request(  # noqa: S310 - the emulator of the test
            url.replace(PORT, emulator.url), body.encode() if body else None, method=method
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            json.load(answer)


@blocks("json")
def test_json_is_json_and_a_connection_can_be_used(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    given = json.loads(block.text)
    if isinstance(given, dict) and given.get("conn_type") == "rungen":
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", block.text)
        assert RunGenHook().settings.api_key == "YOUR-API-KEY"


# --- links ---


def _prose(page: Path) -> str:
    return re.sub(r"^( *)(`{3,}).*\n(?:.*\n)*?\1\2 *$", "", page.read_text(), flags=re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        parts = urlsplit(target)
        if parts.scheme:
            assert target in EXTERNAL, f"{target} is not in the list of external links"
            continue
        there = page.parent / parts.path if parts.path else page
        assert there.exists(), target
        if parts.fragment:
            assert parts.fragment in _anchors(there), target


# --- nothing is left out ---


FILE = re.compile(r"`((?:bench|compat|docs|emulator|example_dags|scripts|tests)/[\w./-]+\.\w+)`")

PACKAGES = "client|hooks|operators|outputs|results|store|table|task|triggers|work"
# a path in the package
MODULE = re.compile(rf"[`(]((?:{PACKAGES})/[\w/]+\.py)[`)]")


@pages
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "compatibility.md":
        pytest.skip("it names the tests of earlier runs")
    names = FILE.findall(_prose(page))
    if page.name == "architecture.md":  # its code is in the package
        names += [f"airflow_provider_rungen/{name}" for name in MODULE.findall(_prose(page))]
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_index_leads_to_each_page() -> None:
    index = (DOCS / "index.md").read_text()
    names = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}
    assert {name for name in names if f"]({name})" not in index} == set()
    toctrees = "\n".join(block.text for block in BLOCKS if block.language == "{toctree}")
    assert {name for name in names if name.removesuffix(".md") not in toctrees.splitlines()} == set()


def _text(*names: str) -> str:
    return "\n".join(page.read_text() for name in names for page in sorted(DOCS.glob(name)))


def test_each_operator_and_sensor_has_a_guide() -> None:
    classes = operators.__all__ + [name for name in vars(sensors) if re.fullmatch(r"RunGen\w+Sensor", name)]
    guides = [block.text for block in BLOCKS if block.page.parent.name == "guides"]
    assert [name for name in classes if not any(re.search(rf"\b{name}[.(]", text) for text in guides)] == []
    values = _text("return-values.md")
    assert [name for name in classes if name.startswith("RunGen") and f"`{name}`" not in values] == []


def test_each_error_is_documented() -> None:
    errors = [name for name in vars(exceptions) if name.startswith("RunGen") and name != "RunGenError"]
    page = _text("errors.md")
    assert [name for name in errors if f"| `{name}`" not in page] == []


def test_each_field_of_the_connection_is_documented() -> None:
    extras = get_provider_info()["connection-types"][0]["conn-fields"]
    assert [name for name in extras if f"| `{name}` |" not in _text("connection.md")] == []


def test_each_option_of_the_emulator_is_documented() -> None:
    page = _text("testing.md")
    assert [option.name for option in options() if f"| `{option.name}` |" not in page] == []
    names = {*UsersFault.kinds, *OPERATIONS} - {"unknown"}
    assert [name for name in names if f"`{name}`" not in page] == []
