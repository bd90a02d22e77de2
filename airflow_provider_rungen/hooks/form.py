"""The connection form of Airflow before 3.2, made from the data that later versions read by themselves."""

from __future__ import annotations

from typing import Any

from airflow_provider_rungen import get_provider_info


def form_widgets() -> dict[str, Any]:
    """Return the fields of the form."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import BooleanField, PasswordField, StringField

    widgets: dict[str, Any] = {}
    for name, spec in get_provider_info()["connection-types"][0]["conn-fields"].items():
        label, text = spec["label"], spec["description"]
        if "boolean" in spec["schema"]["type"]:
            widgets[name] = BooleanField(label, description=text, default=spec["schema"].get("default"))
        elif spec["schema"].get("format") == "password":
            widgets[name] = PasswordField(label, description=text, widget=_draw_password)
        else:
            widgets[name] = StringField(label, description=text, widget=BS3TextFieldWidget())
    return widgets


def ui_field_behaviour() -> dict[str, Any]:
    """Return the labels, placeholders and hidden fields of the form."""
    behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
    return {name.replace("-", "_"): value for name, value in behaviour.items()}


def _draw_password(field: Any, **attributes: Any) -> Any:
    """Draw a password field that keeps its value when other fields are edited. The library's is empty."""
    from airflow.www.views import SENSITIVE_FIELD_PLACEHOLDER
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget

    value = SENSITIVE_FIELD_PLACEHOLDER if field.data else ""
    return BS3PasswordFieldWidget(hide_value=False)(field, **attributes, value=value)
