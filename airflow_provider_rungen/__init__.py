"""Run RunGen.AI jobs from Apache Airflow."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider to Airflow: plain data, so that nothing heavy is imported to read it."""
    text = {"type": ["string", "null"]}
    return {
        "package-name": "airflow-provider-rungen",
        "name": "RunGen.AI",
        "description": "Run RunGen.AI jobs: submit, wait, collect.",
        "integrations": [
            {
                "integration-name": "RunGen.AI",
                "external-doc-url": "https://rungen.ai",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "RunGen.AI", "python-modules": ["airflow_provider_rungen.hooks"]}],
        "operators": [
            {"integration-name": "RunGen.AI", "python-modules": ["airflow_provider_rungen.operators"]}
        ],
        "sensors": [{"integration-name": "RunGen.AI", "python-modules": ["airflow_provider_rungen.sensors"]}],
        "triggers": [
            {"integration-name": "RunGen.AI", "python-modules": ["airflow_provider_rungen.triggers"]}
        ],
        "connection-types": [
            {
                "connection-type": "rungen",
                "hook-name": "RunGen.AI",
                "hook-class-name": "airflow_provider_rungen.hooks.RunGenHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {"host": "https://api.rungen.ai"},
                },
                "conn-fields": {
                    "team_id": {
                        "label": "Team ID",
                        "description": "Work in this team; empty means the key owner's personal context.",
                        "schema": text,
                    },
                    "app_id": {
                        "label": "Default app ID",
                        "description": "The app to use when a task names none.",
                        "schema": text,
                    },
                    "user_id": {
                        "label": "User ID",
                        "description": "Your user UUID, sent when a job is canceled.",
                        "schema": text,
                    },
                    "timeout": {
                        "label": "Timeout",
                        "description": "Seconds a request may take. Default: 10 to connect, 60 to answer.",
                        "schema": text,
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "true (default), false, or the path of a CA bundle.",
                        "schema": text,
                    },
                    "proxy": {
                        "label": "Proxy",
                        "description": "URL of a proxy, with its password if it needs one.",
                        "schema": {**text, "format": "password"},
                    },
                    "allow_http": {
                        "label": "Allow plain http",
                        "description": "Send the API key unencrypted to a host that is not this machine.",
                        "schema": {"type": ["boolean", "null"], "default": False},
                    },
                    "max_response_bytes": {
                        "label": "Largest answer",
                        "description": "Bytes over which an answer is refused. Default: 33554432 (32 MiB).",
                        "schema": text,
                    },
                    "max_requests_per_second": {
                        "label": "Requests per second",
                        "description": "How many requests a process sends in a second. Default: no limit.",
                        "schema": text,
                    },
                    "app_url": {
                        "label": "Link to an app",
                        "description": "Address with {app_id} in it. Default: its API address.",
                        "schema": text,
                    },
                    "job_url": {
                        "label": "Link to a job",
                        "description": "Address with {app_id} and {job_id} in it. Default: its API address.",
                        "schema": text,
                    },
                },
            }
        ],
        "extra-links": [
            "airflow_provider_rungen.links.RunGenJobLink",
            "airflow_provider_rungen.links.RunGenAppLink",
        ],
        "task-decorators": [
            {"name": "rungen", "class-name": "airflow_provider_rungen.decorators.rungen_task"}
        ],
    }
