"""The rules as strategies of Flower's ServerApp, and attacks on weights as Mods of its ClientApp; needs [flower]."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

# Flower calls home unless it is told not to; whoever sets the variable himself has his way.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import visible
from mbdefense.federated.attacks._attack import within
from mbdefense.federated.rules import MARS, RULES, Rule
from mbdefense.federated.server import Played, aggregate
from mbdefense.federated.weights import flat, moved

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency
    from flwr.supercore import telemetry
except ImportError as error:
    fix = "pip install -c constraints-flower.txt '.[flower]', in an environment of its own"
    raise UserError("Flower is not installed", fix=fix) from error

if TYPE_CHECKING:
    from torch import Tensor

# It reads the variable when it is imported, which a ServerApp may have done before it imported this module.
telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]


class RobustFedAvg(FedAvg):  # type: ignore[misc]  # Flower is not there where types are checked
    """Flower's FedAvg with one of the rules in place of the mean.

    Clients whose reply cannot be used (no finite numbers, other names, shapes or types, no arrays, an error in its
    place) are left out and counted, where Flower's own check ends the round. The MetricRecord of a round holds node ids
    as ``kept``, ``flagged`` and ``refused``, and the figures that the choice rests on, beside the kept clients' own.
    Figures, of training and of evaluation, are those of clients whose records have the form that most have.

    Args:
        rule: its spec (`mbdefense list rules`), or the rule, calibrated where it asks for that.
        fedavg: what `flwr.serverapp.strategy.FedAvg` takes, which is not this package's to list.

    Raises:
        UserError: an unknown rule, one of its options that cannot be, or MARS whose epsilon is not calibrated; in a
            round: no client sent usable weights.
    """

    def __init__(self, rule: str | Rule = "mars", **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.rule: Rule = parse_spec(rule, RULES, "rule") if isinstance(rule, str) else rule
        if isinstance(self.rule, MARS) and isinstance(self.rule.epsilon, str):
            fix = "give a number, or what MARS.calibrated makes of clean rounds"
            raise UserError("epsilon is not calibrated, and a server of Flower's has no rows", self.rule.epsilon, fix)
        self._before: dict[str, Any] | None = None

    def summary(self) -> None:
        """Logs the rule, and what FedAvg logs."""
        logging.getLogger("flwr").info("\t├──> Rule: %s", self.rule)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sends out the global arrays, and keeps them: a rule looks at changes."""
        self._before = dict(arrays.to_torch_state_dict())
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next global arrays, and who is in them."""
        # Flower samples nodes in any order, on which float sums and ties depend.
        received = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        if not received or self._before is None:
            return None, None
        self._check_and_log_replies(received, is_train=True, validate=False)
        read = [self._read(reply) for reply in received]
        tables, rows = [one[0] for one in read], [one[1] for one in read]
        # A client knows the round's number, and could take noise drawn by it off again.
        played = aggregate(self.rule, self._before, tables, rows, secrets.randbits(63))
        return ArrayRecord(played.weights), self._told(received, played)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What clients measured of the global arrays; None if nobody's record can be used."""
        received = list(replies)
        self._check_and_log_replies(received, is_train=False, validate=False)
        answered = [reply.content for reply in received if not reply.has_error()]
        return self._figures(answered, self.evaluate_metrics_aggr_fn, arrays=False)

    def _read(self, reply: Message) -> tuple[object, object]:
        """A reply's table of weights and its number of rows; None in the place of what is not there."""
        if reply.has_error():
            return None, 1
        try:
            arrays = next(iter(reply.content.array_records.values()), None)
            table = None if arrays is None else dict(arrays.to_torch_state_dict())
        except Exception as error:  # whatever a hostile array makes of numpy
            table = None
            _log(f"node {reply.metadata.src_node_id}: its arrays cannot be read ({first_line(error)})")
        rows = next((one.get(self.weighted_by_key) for one in reply.content.metric_records.values()), None)
        return table, int(rows) if isinstance(rows, float) and rows.is_integer() else rows

    def _told(self, received: list[Message], played: Played) -> MetricRecord:
        kept = [received[client].content for client in played.kept]
        metrics = self._figures(kept, self.train_metrics_aggr_fn, arrays=True) or MetricRecord()
        ids = [reply.metadata.src_node_id for reply in received]
        for name, clients in (("kept", played.kept), ("flagged", played.flagged), ("refused", played.refused)):
            metrics[name] = [ids[client] for client in clients]
        for client, reason in played.refused.items():
            _log(f"node {ids[client]} is left out: {reason}")
        return MetricRecord({**metrics, **{name: float(value) for name, value in played.facts.items()}})

    def _figures(
        self, contents: Sequence[RecordDict], average: Callable[[list[RecordDict], str], MetricRecord], *, arrays: bool
    ) -> MetricRecord | None:
        """The mean of clients' own figures, of those whose form is the usual one; None if they cannot be averaged."""
        forms = [_form(content) for content in contents]
        usual = [content for content, form in zip(contents, forms, strict=True) if form == max(forms, key=forms.count)]
        if len(usual) < len(contents):
            _log(f"figures of {len(contents) - len(usual)} clients have another form than most, and are left out")
        try:
            if usual:
                validate_message_reply_consistency(usual, self.weighted_by_key, check_arrayrecord=arrays)
                return average(usual, self.weighted_by_key)
        except Exception as error:  # whatever hostile values make of the sums
            _log(f"figures of clients cannot be averaged ({first_line(error)})")
        return None


Mod: TypeAlias = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def scaling_mod(factor: float) -> Mod:
    """A Mod with which a ClientApp sends its change several times as large (model replacement, arXiv 1807.00459).

    Poisoned rows are the client's own business. To test a server with; see `mbdefense.federated.attacks.Scaling`.
    """
    return _mod(lambda change: factor * change)


def projecting_mod(radius: float) -> Mod:
    """A Mod with which a ClientApp shortens its change to a radius where it is longer (PGD, arXiv 2007.05084).

    It is projected once, at the end of its training. Else as `scaling_mod`; see
    `mbdefense.federated.attacks.Projected`.
    """
    return _mod(lambda change: within(change, radius))


def _mod(made_of: Callable[[Tensor], Tensor]) -> Mod:
    """A Mod that makes another change (P,) of a client's own."""

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        sent = {name: record.to_torch_state_dict() for name, record in message.content.array_records.items()}
        reply = call_next(message, context)
        if not reply.has_error():
            for name, record in list(reply.content.array_records.items()):
                # A client may give the one record that it was sent another name.
                before, trained = sent.get(name, next(iter(sent.values()))), record.to_torch_state_dict()
                change = made_of(flat(trained, before))
                reply.content[name] = ArrayRecord(moved(before, change, trained))
        return reply

    return mod


def _form(content: RecordDict) -> list[tuple[str, list[tuple[str, int]]]]:
    """Names of a client's figures, and the length of each that is a list; -1 for a single one."""
    return [
        (name, sorted((key, len(value) if isinstance(value, list) else -1) for key, value in record.items()))
        for name, record in content.metric_records.items()
    ]


def _log(text: str) -> None:
    logging.getLogger("flwr").warning("%s", visible(text))
