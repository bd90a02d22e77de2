"""What is open: claims, and the jobs of claims. One attempt reads those of all, and writes its own."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from airflow_provider_rungen.store.files import OPEN, RUNS, Files, claim_path, job_path
from airflow_provider_rungen.store.records import Policy, Record, Status, normalize

_OPEN_NAME = re.compile(r"([0-9a-f]{64})\.([1-9][0-9]{0,8})(?:\.(.+))?")
# What is open for so many seconds is looked at by whoever comes along, so many purchases at a time.
_STALE_TIME, _MOST_STALE = 86_400.0, 100


@dataclass(slots=True)
class _Purchase:
    """What ``open`` has of one purchase."""

    modified: float = 0.0
    jobs: list[str] = field(default_factory=list)
    claim: Record | None = None


class Claims:
    """
    What is open, as one attempt reads and writes it.

    :param files: where it is.
    :param policy: the task's.
    :param is_wanted: whether a key is one of the task's rows. Claims of others are not read.
    :param now: the time (seconds since 1970) of this worker.
    """

    def __init__(
        self, files: Files, policy: Policy, is_wanted: Callable[[str], bool], now: Callable[[], float]
    ) -> None:
        self._files, self._policy, self._is_wanted, self._now = files, policy, is_wanted, now
        self._open: dict[str, dict[int, _Purchase]] = {}
        # what has ended, and has files there until the record is stored
        self._ended: set[tuple[str, int]] = set()
        self._clock_offset: float | None = None
        self.is_read_only = False  #: Whether nothing may be written, not even a view.
        # when each file was last modified, at the last look
        self._listed: Mapping[str, float] = {}

    # --- reading ---

    async def look(self) -> None:
        """Read what is new, past any cache."""
        self._listed = await self._files.list(OPEN)
        before, self._open = self._open, {}
        unread: dict[str, _Purchase] = {}
        for path, modified in self._listed.items():
            found = _OPEN_NAME.fullmatch(path, len(OPEN) + 1)
            if found is None or not self._is_wanted(found[1]):
                continue
            key, n = found[1], int(found[2])
            if (key, n) in self._ended:
                continue
            purchase = self._open.setdefault(key, {}).setdefault(n, _Purchase())
            if found[3] is not None:
                purchase.jobs.append(unquote(found[3]))
                continue
            purchase.modified = modified
            known = before.get(key, {}).get(n)
            if known is not None and known.claim is not None and known.claim.by:
                purchase.claim = known.claim
            else:
                unread[path] = purchase
        self._keep_own(before)
        contents = await self._files.read(unread)
        for path, purchase in unread.items():
            if path in contents:  # otherwise it has ended since
                purchase.claim = _claim_of(path, contents[path])
        if unread and self._clock_offset is None:
            await self._learn_clock()

    def _keep_own(self, before: Mapping[str, Mapping[int, _Purchase]]) -> None:
        """Keep what this attempt is buying, though a listing that began earlier does not have it."""
        for key, purchases in before.items():
            for n, purchase in purchases.items():
                if purchase.claim is not None and purchase.claim.by == self._policy.by:
                    self._open.setdefault(key, {})[n] = purchase

    async def _learn_clock(self) -> None:
        """Learn how far the store's clock is ahead of this worker's. Who only reads takes them for one."""
        if self.is_read_only:
            return
        before, folder = self._now(), f"{RUNS}/{self._policy.run}"
        await self._files.write(path := f"{folder}/clock", b"\n")
        modified = (await self._files.list(folder)).get(path)
        self._clock_offset = 0.0 if modified is None else modified - before

    @property
    def _store_time(self) -> float:
        return self._now() + (self._clock_offset or 0.0)

    def history(self, key: str, but: int = 0) -> list[Record]:
        """
        Return the open purchases of a key.

        :param but: a purchase whose claim is left out: the own one.
        """
        facts: list[Record] = []
        for n, purchase in self._open.get(key, {}).items():
            if purchase.claim is None:  # it has ended, and the record is in `done`
                continue
            age = max(self._store_time - purchase.modified, 0.0)
            for job in purchase.jobs:
                change = {"job": job, "status": Status.OPEN, "age": age}
                facts.append(purchase.claim.model_copy(update=change))
            if n != but:
                facts.append(purchase.claim.model_copy(update={"age": age}))
        return facts

    def of_own_run(self) -> Iterator[Record]:
        """Yield the open jobs of the own run, and as lost what its killed attempts claimed."""
        for key, purchases in self._open.items():
            if any(
                each.claim is not None and each.claim.run == self._policy.run for each in purchases.values()
            ):
                facts = (each for each in normalize(self.history(key)) if each.run == self._policy.run)
                yield from (each for each in facts if each.status is not Status.CLAIMED)

    async def stale(self) -> list[Record]:
        """
        Return purchases that were open for over a day at the last look, of this app, whoever made them.

        A purchase with jobs is each of them, and one without is lost. Whoever finds them records how they
        ended, so that nothing is forgotten though its row has changed.
        """
        purchases: dict[str, list[str]] = {}
        recent = set[str]()
        for path, modified in self._listed.items():
            if (found := _OPEN_NAME.fullmatch(path, len(OPEN) + 1)) is not None:
                claimed = claim_path(found[1], int(found[2]))
                jobs = purchases.setdefault(claimed, [])
                if found[3] is not None:
                    jobs.append(unquote(found[3]))
                if self._store_time - modified < _STALE_TIME:
                    recent.add(claimed)
        old = [claimed for claimed in purchases if claimed not in recent]
        # at random, so that what runs on and on keeps nobody from the others
        some = random.sample(old, min(len(old), _MOST_STALE))
        facts = []
        for path, content in (await self._files.read(some)).items():
            if (claim := _claim_of(path, content)).app == self._policy.app:
                for job in purchases[path] or [""]:
                    status = Status.OPEN if job else Status.LOST
                    facts.append(claim.model_copy(update={"job": job, "status": status}))
        return facts

    # --- writing ---

    async def add(self, purchases: Mapping[str, int]) -> set[str]:
        """
        Claim the n-th purchase of each key, and return the keys that are claimed by this attempt.

        :param purchases: n, by key.
        """
        policy, at = self._policy, self._now()
        claims = {
            claim_path(key, n): Record(key=key, n=n, app=policy.app, run=policy.run, by=policy.by, at=at)
            for key, n in purchases.items()
        }
        created = await self._files.create({path: _content_of(claim) for path, claim in claims.items()})
        others = await self._files.read([path for path in claims if path not in created])
        for path, content in others.items():  # the answer to an own create may have been lost
            if (found := _claim_of(path, content)).by == policy.by:
                claims[path] = found
                created.add(path)
        for claim in (claims[path] for path in claims if path in created):
            purchase = _Purchase(at + (self._clock_offset or 0.0), claim=claim)
            self._open.setdefault(claim.key, {})[claim.n] = purchase
        return {claims[path].key for path in created}

    async def withdraw(self, purchases: Mapping[str, int]) -> None:
        """Remove claims of this attempt for which certainly nothing was sent."""
        await self._files.remove([claim_path(key, n) for key, n in purchases.items()])
        for key, n in purchases.items():
            self._forget(key, n)

    async def add_job(self, key: str, n: int, job: str) -> Record:
        """Write the id of the job of an own claim, and return the open purchase."""
        purchase = self._open[key][n]
        claim = purchase.claim
        assert claim is not None  # noqa: S101 - for the type checker
        await self._files.create({job_path(key, n, job): b"\n"})  # its name says it all
        purchase.jobs.append(job)
        return claim.model_copy(update={"job": job, "status": Status.OPEN})

    def end(self, record: Record) -> None:
        """Forget a purchase that has ended. Its files stay until `remove`."""
        self._ended.add((record.key, record.n))
        self._forget(record.key, record.n)

    async def remove(self, records: list[Record]) -> None:
        """Remove what ended, and is stored."""
        # the job first: a claim alone comes to an end by itself
        await self._files.remove([job_path(each.key, each.n, each.job) for each in records if each.job])
        await self._files.remove([claim_path(each.key, each.n) for each in records])
        self._ended -= {(each.key, each.n) for each in records}

    def _forget(self, key: str, n: int) -> None:
        purchases = self._open.get(key, {})
        purchases.pop(n, None)
        if not purchases:
            self._open.pop(key, None)


def _claim_of(path: str, content: bytes) -> Record:
    """Return the claim in a file. One that is being written has neither an app nor a run."""
    found = _OPEN_NAME.fullmatch(path, len(OPEN) + 1)
    assert found is not None  # noqa: S101 - for the type checker: the path was made or matched before
    key, n = found[1], int(found[2])
    if not content.endswith(b"\n"):
        return Record(key=key, n=n)
    return Record.of_line(b'%s,"key":"%s","n":%d}' % (content[:-2], key.encode(), n), path)


def _content_of(claim: Record) -> bytes:
    """Return the content of the file of a claim, whose name has the key and the number."""
    return claim.model_dump_json(exclude={"key", "n"}, exclude_defaults=True).encode() + b"\n"
