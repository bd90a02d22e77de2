"""The configuration of ``make docs``."""

from __future__ import annotations

import os
from pathlib import Path

# autodoc imports Airflow, which writes its configuration into its home
os.environ["AIRFLOW_HOME"] = str(Path(__file__).parents[1] / "build" / "docs-airflow")

from airflow_provider_rungen import __version__

project = "airflow-provider-rungen"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"RunGen.AI for Airflow {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

# as GitHub names the headings of these pages
myst_heading_anchors = 3

# text in single backticks in a docstring
default_role = "code"
autodoc_member_order = "bysource"
# docstrings of Airflow's base classes describe Airflow
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
add_module_names = False
toc_object_entries_show_parents = "hide"

# `--nitpicky` applies to names on the site; to check names of other packages, Sphinx would have to download.
nitpick_ignore_regex = [
    ("py:.*", r"(airflow|requests|pendulum|aiohttp|collections|contextlib|datetime|enum|typing)\..*"),
    ("py:.*", r"(pandas|pyarrow)\..*"),
    # imported only for type checkers
    ("py:class", "Context|Emulator|JsonValue|ObjectStoragePath|TaskDecorator|XComArg"),
    (
        "py:class",
        "Check|Destination|Duration|JobIds|JobInput|OutputSource|SchemaSource|JsonObject|[A-Za-z]+Arguments",
    ),
    ("py:class", "IdleEvent|LedgerSource|Limit|Param|Table|ToInput"),
    ("py:class", r"airflow_provider_rungen\.exceptions\.Error"),  # a type variable
    # annotations of a dataclass are texts, without their modules
    ("py:class", r"os\.PathLike|datetime|timedelta|dict\[str"),
    ("py:class", r"airflow_provider_rungen\.(client\.(?!models)|_airflow).*"),  # not public
]
