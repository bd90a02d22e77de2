"""The undocumented names of Airflow that the package uses. A release of Airflow may move them.

The tests look up each one on every Airflow, including the newest pre-release.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

Version = tuple[int, int]


@dataclass(frozen=True)
class PrivateName:
    """
    A name of Airflow that is not part of its public interface.

    :param path: ``module:attribute``, with dots in the attribute for a member of a class.
    :param use: what the package needs it for.
    :param seen: the newest Airflow that it was seen in.
    :param since: the first Airflow that it is used on.
    :param before: the first Airflow that it is no longer used on.
    """

    path: str
    use: str
    seen: str = "3.4.0b2"
    since: Version = (2, 11)
    before: Version = (99, 0)

    def is_used_on(self, version: Version) -> bool:
        return self.since <= version < self.before

    def look_up(self) -> Any:
        """
        Return the object with this name.

        :raises ImportError: there is no such module.
        :raises AttributeError: the module has no such name.
        """
        module, _, attribute = self.path.partition(":")
        value = import_module(module)
        for part in filter(None, attribute.split(".")):
            value = getattr(value, part)
        return value


_DECORATORS = "`@task.rungen`"
_KILLS = "whether a trigger ends because its task was killed"
_METRICS = "metrics"
_MASK = "masking the password of a proxy"
_FORM = "the form of the connection"
_LOST = "the end of a deferral without an event"
_POKES = "poking no sooner than the service asked for"
_LITERALS = "checks of literal parameters, which a mapped task skips"
_KIT = "`run_operator`"
_PAGES = "the pages"
_OTHERS = "whether other tasks need an app that is to be scaled down"

PRIVATE_NAMES = [
    PrivateName("airflow.sdk.bases.decorator:DecoratedOperator", _DECORATORS, since=(3, 0)),
    PrivateName("airflow.sdk.bases.decorator:task_decorator_factory", _DECORATORS, since=(3, 0)),
    PrivateName("airflow.sdk.bases.decorator:determine_kwargs", _DECORATORS, since=(3, 2)),
    PrivateName("airflow.utils.operator_helpers:determine_kwargs", _DECORATORS, "3.1.6", before=(3, 2)),
    PrivateName("airflow.sdk.definitions.context:context_merge", _DECORATORS, since=(3, 1)),
    PrivateName("airflow.sdk.definitions._internal.types:SET_DURING_EXECUTION", _DECORATORS, since=(3, 0)),
    PrivateName("airflow.utils.types:NOTSET", _DECORATORS, "2.11.2", before=(3, 0)),
    PrivateName("airflow.triggers.base:BaseTrigger.task_instance", _KILLS, since=(3, 3)),
    PrivateName("airflow.triggers.base:BaseTrigger.on_kill", _KILLS, since=(3, 3)),
    PrivateName(
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_task_states", _KILLS, since=(3, 0)
    ),
    PrivateName("airflow.models.taskinstance:TaskInstance.try_number", _KILLS, "2.11.2", before=(3, 0)),
    PrivateName("airflow.utils.session:create_session", _KILLS, "2.11.2", before=(3, 0)),
    PrivateName(
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_dr_count", _OTHERS, since=(3, 0)
    ),
    PrivateName(
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_dagrun_state", _OTHERS, since=(3, 0)
    ),
    PrivateName("airflow.sdk:BaseSensorOperator._get_next_poke_interval", _POKES, since=(3, 0)),
    PrivateName(
        "airflow.sensors.base:BaseSensorOperator._get_next_poke_interval", _POKES, "2.11.2", before=(3, 0)
    ),
    PrivateName("airflow.sdk.execution_time.xcom:XCom.get_one", _KILLS, since=(3, 0)),
    PrivateName("airflow.models.xcom:XCom.get_one", _KILLS, "2.11.2", before=(3, 0)),
    PrivateName("airflow.sdk:BaseOperator.resume_execution", _LOST, since=(3, 0)),
    PrivateName("airflow.models.baseoperator:BaseOperator.resume_execution", _LOST, "2.11.2", before=(3, 0)),
    PrivateName("airflow.sdk:BaseOperator.iter_mapped_dependants", "`end_from_trigger`", since=(3, 3)),
    PrivateName("airflow.listeners.listener:get_listener_manager", "`end_from_trigger`"),
    PrivateName("airflow.sdk:BaseOperator._BaseOperator__from_mapped", _LITERALS, since=(3, 0)),
    PrivateName(
        "airflow.models.baseoperator:BaseOperator._BaseOperator__from_mapped",
        _LITERALS,
        "2.11.2",
        before=(3, 0),
    ),
    PrivateName("airflow.sdk.bases.operator:ExecutorSafeguard.test_mode", _KIT, since=(3, 0)),
    PrivateName("airflow.models.baseoperator:ExecutorSafeguard.test_mode", _KIT, "2.11.2", before=(3, 0)),
    PrivateName("airflow.sdk.execution_time.context:VariableAccessor", _KIT, since=(3, 0)),
    PrivateName("airflow.sdk.execution_time.context:ConnectionAccessor", _KIT, since=(3, 0)),
    PrivateName(
        "airflow.sdk.definitions.mappedoperator:MappedOperator._get_specified_expand_input",
        _KIT,
        since=(3, 0),
    ),
    PrivateName(
        "airflow.models.mappedoperator:MappedOperator._get_specified_expand_input",
        _KIT,
        "2.11.2",
        before=(3, 0),
    ),
    PrivateName("airflow.utils.context:VariableAccessor", _KIT, "2.11.2", before=(3, 0)),
    PrivateName("airflow.utils.context:ConnectionAccessor", _KIT, "2.11.2", before=(3, 0)),
    PrivateName(
        "airflow.sdk:BaseOperator.get_closest_mapped_task_group", "`start_from_trigger`", since=(3, 3)
    ),
    PrivateName("airflow.sdk.definitions.xcom_arg:PlainXComArg", "`start_from_trigger`", since=(3, 3)),
    PrivateName("airflow.sdk.execution_time.xcom:XCom.aset", "links of `start_from_trigger`", since=(3, 3)),
    PrivateName("airflow.sdk.execution_time.xcom:XCom.get_value", "links", since=(3, 0)),
    PrivateName("airflow.sdk.execution_time.comms:XComResult", _PAGES, since=(3, 0)),
    PrivateName("airflow.models.xcom:XComModel.value", _PAGES, since=(3, 0)),
    PrivateName("airflow.models.serialized_dag:SerializedDagModel.dag_version_id", _PAGES, since=(3, 0)),
    PrivateName(
        "airflow.models.renderedtifields:RenderedTaskInstanceFields.get_templated_fields",
        _PAGES,
        since=(3, 0),
    ),
    PrivateName("airflow.models.xcom:XCom.get_value", "links", "2.11.2", before=(3, 0)),
    PrivateName("airflow.sdk.observability.stats:Stats", _METRICS, since=(3, 2)),
    PrivateName("airflow.observability.stats:Stats", _METRICS, since=(3, 2)),
    PrivateName("airflow.stats:Stats", _METRICS, "3.1.6", before=(3, 2)),
    PrivateName("airflow.sdk.log:amask_secret", _MASK, since=(3, 4)),
    PrivateName("airflow.sdk.log:mask_secret", _MASK, since=(3, 1)),
    PrivateName(
        "airflow.sdk.execution_time.secrets_masker:mask_secret", _MASK, "3.0.6", (3, 0), before=(3, 1)
    ),
    PrivateName("airflow.utils.log.secrets_masker:mask_secret", _MASK, "2.11.2", before=(3, 0)),
    PrivateName("airflow.www.views:SENSITIVE_FIELD_PLACEHOLDER", _FORM, "2.11.2", before=(3, 0)),
    PrivateName("flask_appbuilder.fieldwidgets:BS3PasswordFieldWidget", _FORM, "2.11.2", before=(3, 0)),
]
