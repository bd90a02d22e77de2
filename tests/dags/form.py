"""Print the parts of this Airflow's connection form for RunGen, as JSON."""

from __future__ import annotations

import json
from typing import Any


def form() -> dict[str, Any]:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    [meta] = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "rungen"]
    shown = meta.model_dump(mode="json")
    standard = {
        "schema" if name == "url_schema" else name: field
        for name, field in (shown["standard_fields"] or {}).items()
        if field
    }
    return {
        "labels": {name: field["title"] for name, field in standard.items() if field["title"]},
        "hidden": [name for name, field in standard.items() if field["hidden"]],
        "fields": {
            name: [field["schema"]["title"], field["description"]]
            for name, field in (shown["extra_fields"] or {}).items()
        },
    }


if __name__ == "__main__":
    print("FORM", json.dumps(form()), flush=True)
