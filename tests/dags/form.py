"""Print the parts of this Airflow's connection form for RunGen, as JSON."""

from __future__ import annotations

import json
from typing import Any

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS


def of_airflow_3() -> dict[str, Any]:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    [meta] = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "rungen"]
    form = meta.model_dump(mode="json")
    standard = {
        "schema" if name == "url_schema" else name: field
        for name, field in (form["standard_fields"] or {}).items()
        if field
    }
    return {
        "labels": {name: field["title"] for name, field in standard.items() if field["title"]},
        "hidden": [name for name, field in standard.items() if field["hidden"]],
        "fields": {
            name: [field["schema"]["title"], field["description"]]
            for name, field in (form["extra_fields"] or {}).items()
        },
    }


def of_airflow_2() -> dict[str, Any]:
    from airflow.providers_manager import ProvidersManager

    manager: Any = ProvidersManager()  # type: ignore[no-untyped-call]
    behaviour = manager.field_behaviours["rungen"]
    return {
        "labels": behaviour["relabeling"],
        "hidden": behaviour["hidden_fields"],
        "fields": {
            name.removeprefix("extra__rungen__"): [widget.field.args[0], widget.field.kwargs["description"]]
            for name, widget in manager.connection_form_widgets.items()
            if name.startswith("extra__rungen__")
        },
    }


if __name__ == "__main__":
    print("FORM", json.dumps(of_airflow_3() if AIRFLOW_V_3_0_PLUS else of_airflow_2()), flush=True)
