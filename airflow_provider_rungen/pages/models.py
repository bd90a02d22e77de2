"""
What pages show of jobs, as frozen values. No Airflow, no I/O.

Texts are plain text, and may come from strangers: a page escapes them. They must be redacted before, as must
`JobView.input`: a page has no keys and no signed URLs. An ``href`` is relative, or begins with ``http``. In a
relative one, escape a colon before the first slash: it would be taken for a scheme, and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

#: Labels and their values, in the order in which they are shown.
Facts: TypeAlias = Sequence[tuple[str, str]]
#: How a file is shown; see `output_kinds`.
OutputKind: TypeAlias = Literal["image", "audio", "video", "text", "download"]
#: The statuses of jobs that failed; ``refused`` is that of an input without a job.
FAILED = frozenset(["failed", "canceled", "refused", "given up"])


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """
    A stored file of a job.

    :param name: its name, without a folder.
    :param href: where it is served.
    :param kind: how to show it. What may not be shown in place is a ``download``.
    :param size: its bytes, if known.
    :param width: pixels, if known, so that the page does not jump when it is loaded.
    :param height: likewise.
    """

    name: str
    href: str
    kind: OutputKind = "download"
    size: int | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """
    One job, or one row or input without a job.

    :param index: its position among the inputs.
    :param status: ``queued``, ``running``, ``completed``, ``failed``, ``canceled``, ``refused``, ``skipped``
        or another word, in small letters.
    :param key: what identifies its row in a table.
    :param job_id: the job's id; empty without a job.
    :param seconds: seconds of work, if known.
    :param error: why it failed.
    :param prompt: what the model was asked, if the input has it; see `describe.find_prompt`.
    :param input: the input, redacted.
    :param facts: what else to say in few words: size, seed, …; see `describe.find_facts`.
    :param outputs: its files, or the first of many.
    :param more_outputs: how many more it has.
    :param text: the result of a model that answers with text; see `describe.find_text`.
    :param reused: whether an earlier run paid for it.
    :param href: the page of the job; empty for none.
    """

    index: int
    status: str
    key: str = ""
    job_id: str = ""
    seconds: float | None = None
    error: str = ""
    prompt: str = ""
    input: Mapping[str, Any] | None = None
    facts: Facts = ()
    outputs: Sequence[OutputFile] = ()
    more_outputs: int = 0
    text: str | None = None
    reused: bool = False
    href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """
    Jobs that failed for the same reason.

    :param reason: the reason, without ids.
    :param count: how many jobs.
    :param examples: some of them.
    """

    reason: str
    count: int
    examples: Sequence[JobView] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    How far the jobs of a task are.

    :param total: how many there are.
    :param reused: how many of ``completed`` an earlier run paid for.
    :param skipped: how many rows were skipped. They count as done.
    :param is_moving: whether the task runs or is deferred, so that the page asks again.
    """

    total: int
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    running: int = 0
    queued: int = 0
    skipped: int = 0
    reused: int = 0
    is_moving: bool = False

    @property
    def done(self) -> int:
        """How many are over."""
        return self.completed + self.failed + self.canceled + self.skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Pager:
    """
    Which part of many jobs a page shows.

    :param page: the number of this page, from 1.
    :param pages: how many there are.
    :param previous_href: the page before; empty on the first.
    :param next_href: the page after; empty on the last.
    """

    page: int
    pages: int
    previous_href: str = ""
    next_href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactSheet:
    """
    One page of a contact sheet: a file beside the stored outputs, which needs neither Airflow nor a server.

    :param title: its heading.
    :param facts: what made it: app, DAG, run, time.
    :param progress: how the jobs ended.
    :param jobs: those of this page.
    :param pager: which page it is, if there are several.
    :param failures: all failures, grouped.
    """

    title: str
    facts: Facts = ()
    progress: Progress | None = None
    jobs: Sequence[JobView] = ()
    pager: Pager | None = None
    failures: Sequence[FailureGroup] = ()
