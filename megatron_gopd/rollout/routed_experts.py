"""That servers tell which experts they choose: one that was not started for it answers without them, and no word."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from megatron_gopd.errors import UserError
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.routed_experts import Routers
from megatron_gopd.servers.server import Server

LOGGER = logging.getLogger(__name__)
PROBE = [0, 0]  # token ids, which every model has


async def refuse_without_experts(servers: Sequence[Server], routers: Routers) -> None:
    """Raises UserError: the first server that does not tell, or tells what no router of the student chooses.

    What one says that is lost just now is seen later: every reply is looked at in the same way.
    """
    for server in servers:
        try:
            await server.client.generate(PROBE, {"max_new_tokens": 1, "ignore_eos": True}, routers)
        except RefusedError as error:
            raise UserError(f"the rollout server {server.name}: {error}") from None
        except LostRequestError as error:
            LOGGER.info("%s", error)
