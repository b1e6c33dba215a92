"""Reaching a Ray cluster."""

from __future__ import annotations

import logging
from typing import Any

from mbdefense.core.errors import UserError, first_line

LOCAL = "local"
"""The address of a cluster that is started on this machine for the run."""


def connected(address: str) -> Any:
    """The package ``ray``, connected to the cluster at an address; ``ray.shutdown()`` ends that.

    Raises:
        UserError: the extra is missing, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs the extra ray", fix="in the clone: pip install '.[ray]'") from error
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # a plain one where a node does not start in time
        fix = f"start one with `ray start --head`, or give --ray {LOCAL} ({first_line(error)})"
        raise UserError("no Ray cluster could be reached", address, fix) from error
    return ray
