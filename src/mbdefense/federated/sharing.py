"""How clients share images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.images import Images


def shared_out(labels: Tensor, clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Which rows each client has: of each class a share drawn from a Dirichlet distribution.

    Args:
        labels: of all rows, (n,).
        clients: how many.
        alpha: of the distribution; the smaller, the more unlike the clients. 0.9 in the MARS paper.
        seed: of the draw. A client without rows gets one from the client with the most.

    Raises:
        UserError: there are fewer rows than clients.
    """
    import numpy

    if len(labels) < clients:
        raise UserError("more clients than rows", f"{clients} clients, {len(labels)} rows", "lower clients")
    rng = numpy.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in sorted(set(labels.tolist())):
        members = rng.permutation((labels == label).nonzero().flatten().numpy())
        cuts = (numpy.cumsum(rng.dirichlet([alpha] * clients))[:-1] * len(members)).astype(int)
        for part, found in zip(parts, numpy.split(members, cuts), strict=True):
            part += found.tolist()
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts


def mock_clients(server: Images, sizes: list[int], alpha: float, seed: int) -> Iterator[Images]:
    """Clients that the server plays with its own clean rows, of the sizes of real ones.

    Each draws its shares of classes from a Dirichlet distribution of the same alpha, and rows of them with replacement,
    since the server owns less than the clients. Real clients get shares of each class instead, so that the two are
    alike and not equal.
    """
    import numpy
    import torch

    rng = numpy.random.default_rng(seed)
    classes = sorted(set(server.labels.tolist()))
    for size in sizes:
        shares = rng.dirichlet([alpha] * len(classes))
        chance = torch.zeros(len(server.labels), dtype=torch.float64)
        for label, share in zip(classes, shares, strict=True):
            members = server.labels == label
            chance[members] = share / int(members.sum())
        drawn = rng.choice(len(server.labels), size, p=(chance / chance.sum()).numpy())
        yield server.take(torch.from_numpy(drawn))
