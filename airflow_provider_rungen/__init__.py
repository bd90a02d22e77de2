"""Run RunGen.AI jobs from Apache Airflow."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider to Airflow: plain data, so that nothing heavy is imported to read it."""
    text = {"type": ["string", "null"]}
    team, network, links = ({**text, "section": name} for name in ("App and team", "Network", "Links"))
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
                    # all that extra may hold has a field of its own
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {
                        "host": "https://api.rungen.ai",
                        "password": "your RunGen.AI key",
                        "port": "443",
                        "timeout": "60",
                        "verify": "true",
                        "proxy": "http://user:password@proxy.example:3128",
                        "max_requests_per_second": "no limit",
                        "max_response_bytes": "33554432",
                        "price": "1.20 USD/h",
                        "app_url": "https://console.example.com/{app_id}",
                        "job_url": "https://console.example.com/{app_id}/{job_id}",
                    },
                },
                # Text where a number is meant: Airflow's field for numbers changes under the mouse wheel, and
                # the End key makes it the largest there is.
                "conn-fields": {
                    "app_id": {
                        "label": "Default app ID",
                        "description": "The app to use when a task names none: its id, as Test lists it.",
                        "schema": team,
                    },
                    "team_id": {
                        "label": "Team ID",
                        "description": "The team to work in. Empty: the key owner's personal context.",
                        "schema": team,
                    },
                    "user_id": {
                        "label": "User ID",
                        "description": "Your user UUID, such as 00000000-0000-4000-8000-000000000000. "
                        "Sent when a job is canceled.",
                        "schema": team,
                    },
                    "price": {
                        "label": "Price of a worker",
                        "description": "What a worker of an app costs, such as 1.20 USD/h. For bills alone.",
                        "schema": team,
                    },
                    "timeout": {
                        "label": "Timeout",
                        "description": "Seconds a request may take, such as 60. Empty: 10 to connect, 60 to "
                        "answer.",
                        "schema": network,
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "true, false, or the path of a CA bundle, such as /etc/ssl/ca.pem. "
                        "Empty: true.",
                        "schema": network,
                    },
                    "proxy": {
                        "label": "Proxy",
                        "description": "The URL of a proxy, such as http://user:password@proxy.example:3128. "
                        "Empty: the environment's.",
                        "schema": {**network, "format": "password"},
                    },
                    "allow_http": {
                        "label": "Allow plain http",
                        "description": "Send the API key unencrypted to a host that is not this machine.",
                        "schema": {**network, "type": ["boolean", "null"], "default": False},
                    },
                    "max_requests_per_second": {
                        "label": "Requests per second",
                        "description": "The most requests a task, or a triggerer for an app, sends a second, "
                        "such as 20. Empty: no limit.",
                        "schema": network,
                    },
                    "max_response_bytes": {
                        "label": "Largest answer",
                        "description": "The bytes over which an answer is refused. Empty: 33554432 (32 MiB).",
                        "schema": network,
                    },
                    "app_url": {
                        "label": "Link to an app",
                        "description": "An address with {app_id} in it, such as "
                        "https://console.example.com/{app_id}. Empty: the page in Airflow.",
                        "schema": links,
                    },
                    "job_url": {
                        "label": "Link to a job",
                        "description": "An address with {app_id} and {job_id} in it, such as "
                        "https://console.example.com/{app_id}/{job_id}. Empty: the page in Airflow.",
                        "schema": links,
                    },
                },
            }
        ],
        "extra-links": [
            "airflow_provider_rungen.links.RunGenResultsLink",
            "airflow_provider_rungen.links.RunGenJobLink",
            "airflow_provider_rungen.links.RunGenAppLink",
        ],
        "plugins": [{"name": "rungen", "plugin-class": "airflow_provider_rungen.plugins.RunGenPlugin"}],
        "config": {
            "rungen": {
                "description": "Pages of the RunGen.AI provider in Airflow.",
                "options": {
                    "pages": {
                        "description": "Whether tasks, jobs and apps have pages in Airflow (Airflow 3). "
                        "Set it for all components.",
                        "version_added": "0.2.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
        "task-decorators": [
            {"name": "rungen", "class-name": "airflow_provider_rungen.decorators.rungen_task"},
            {"name": "rungen_table", "class-name": "airflow_provider_rungen.decorators.rungen_table_task"},
        ],
    }
