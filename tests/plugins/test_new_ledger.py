"""The page of a task whose ledger did not exist says so."""

from __future__ import annotations

import pytest
from conftest import APP

from plugins.conftest import World

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("details", [{"new_ledger": "/mnt/nas/<ledger>"}, {}])
def test_a_new_ledger_is_on_the_page_of_its_task(world: World, details: dict[str, str]) -> None:
    record = {"connection": "rungen_default", "app": APP, **details}
    page = world.get(world.save(xcoms={"rungen_page": record}))
    assert page.status_code == 200
    assert ("The ledger /mnt/nas/&lt;ledger&gt; was new" in page.text) == bool(details)
