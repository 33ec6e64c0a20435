"""Which of several processes this is, who started them, and how the first one tells the others something.

Further ranks are either children of the first (Lightning starts them on one machine) or were started beside it: by torchrun, by
SLURM's srun, or as pods of one job. The former inherit its environment; the latter ask a store that the first one keeps.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from fairanon.config.experiments import UserError

_NUMBERS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
_LONGEST = 24 * 3600
"""Seconds that others wait for the first process: it prepares data meanwhile."""


def first_process() -> bool:
    """Whether this process is the first of all, on the first machine, or alone."""
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def started_together() -> bool:
    """Whether this process was started beside others, and not by one of them."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def nodes() -> int:
    """How many machines take part, as torchrun, SLURM or ``NNODES`` say it."""
    return next(
        (int(os.environ[name]) for name in ("GROUP_WORLD_SIZE", "NNODES", "SLURM_NNODES") if name in os.environ), 1
    )


def tell(what: str, message: str) -> None:
    """Tell the processes that were started together something; only the first one may."""
    if started_together():
        _store().set(what, message)


def ask(what: str) -> str:
    """What the first process tells; waits for it.

    Raises:
        UserError: The first process has ended, or says nothing for a day.
    """
    begin = time.monotonic()
    try:
        store = _store()
        while not store.check([what]):
            if time.monotonic() > begin + _LONGEST:
                raise UserError(f"the first process did not say {what!r} for a day; look at what it waits for.")
            time.sleep(0.2)
        return bytes(store.get(what)).decode()
    except RuntimeError as error:  # torch's errors of connections
        raise UserError(
            f"the first process cannot be reached ({str(error).splitlines()[0][:120]}); what it said last says why."
        ) from None


def ask_for_folder(what: str) -> Path:
    """A folder that the first process tells, once it is there: file systems that machines share are late sometimes."""
    folder = Path(ask(what))
    begin = time.monotonic()
    while not folder.exists():
        if time.monotonic() > begin + 120:
            raise UserError(
                f"{folder} is not there: all machines must see the same folder of runs; start them in one that they share."
            )
        time.sleep(0.5)
    return folder


@cache
def _store() -> Any:
    """A store of the first process, or of torchrun's agent; torch's own use the same server, under other names."""
    import torch.distributed

    dist: Any = torch.distributed  # its own types name fewer classes than its documentation
    host, port, first = _address()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        host,
        port,
        is_master=first and not agent,
        timeout=timedelta(minutes=30),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return dist.PrefixStore(f"fairanon/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _address() -> tuple[str, int, bool]:
    """Where the first process is, and whether it is this one."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), first_process()
    if "SLURM_PROCID" in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        return slurm.main_address, slurm.main_port, first_process()
    raise UserError("RANK and WORLD_SIZE are set, MASTER_ADDR or MASTER_PORT is not: say where the first process is.")
