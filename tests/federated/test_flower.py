"""The rules as Flower's strategies: the pure loop's results, and hostile replies that end no round.

Flower's pins differ from this package's, so that it is tested where somebody has installed it (constraints-flower.txt).
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.federated.rounds import Client, play, seed_of
from mbdefense.federated.rules import FLAME, MARS, RULES, Mean
from mbdefense.federated.sharing import shared_out
from mbdefense.federated.weights import flat

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from mbdefense.federated.flower import RobustFedAvg, projecting_mod, scaling_mod


class InProcess(Grid):
    """Flower's grid without its engine: a message goes straight to the client's app."""

    def __init__(self, app, count):
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 99
        self.app, self.count = app, count

    def get_node_ids(self):
        return range(1, self.count + 1)

    def send_and_receive(self, messages, *, timeout=None):
        return [
            self.app(one, Context(1, one.metadata.dst_node_id, {}, RecordDict(), {"node": one.metadata.dst_node_id}))
            for one in messages
        ]

    def set_run(self, run):
        raise AssertionError("a strategy sends and receives through its grid and asks nothing else of it")

    run = create_message = push_messages = pull_messages = property(set_run)


@pytest.fixture(scope="module")
def parts(digits):
    return [digits.take(part) for part in shared_out(digits.labels[:120], 4, 0.9, 0)]


def app_of(learner, parts, hostile=None, mods=()):
    """A client's app that trains as the pure loop does; `hostile` makes a reply of node 1's message in its place."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        at = context.run_config["node"] - 1
        if hostile and at == 0:
            return hostile(message)
        before = message.content["arrays"].to_torch_state_dict()
        made = learner.train(before, parts[at], seed_of(0, message.content["config"]["server-round"] - 1, at))
        return reply(message, ArrayRecord(made), len(parts[at].labels))

    return app


def reply(message, arrays, rows, **metrics):
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": rows, **metrics})})
    return Message(content, reply_to=message)


def start(rule, app, before, rounds=1):
    strategy = RobustFedAvg(rule, fraction_evaluate=0.0)
    strategy.summary()
    return strategy.start(InProcess(app, 4), ArrayRecord(before), num_rounds=rounds)


@pytest.mark.parametrize("rule", ["flame:noise=0" if name == "flame" else name for name in RULES])
def test_flower_gives_what_the_pure_loop_gives(rule, learner, before, parts):
    from mbdefense.federated.grid import rule_of

    found = start(rule, app_of(learner, parts), before, rounds=2)
    clients = [Client(part) for part in parts]
    played = list(play(learner, rule_of(rule), clients, before, range(2), 0))
    arrays = found.arrays.to_torch_state_dict()
    assert all(torch.allclose(arrays[name], value) for name, value in played[-1].weights.items())
    for number, one in enumerate(played, 1):
        metrics = found.train_metrics_clientapp[number]
        assert list(metrics["kept"]) == [client + 1 for client in one.kept]
        assert list(metrics["flagged"]) == [client + 1 for client in one.flagged]


HOSTILE = {
    "NaN": lambda message, arrays: reply(
        message, ArrayRecord({name: value * float("nan") for name, value in arrays.items()}), 5
    ),
    "another shape": lambda message, arrays: reply(
        message, ArrayRecord({name: torch.zeros(3) for name in arrays}), 5
    ),
    "other names": lambda message, arrays: reply(message, ArrayRecord({"x": torch.zeros(3)}), 5),
    "nothing": lambda message, arrays: Message(RecordDict(), reply_to=message),
    "no rows": lambda message, arrays: reply(message, ArrayRecord(arrays), -3),
    "other metrics": lambda message, arrays: reply(message, ArrayRecord(arrays), 0, more=1.0),
    "an error": lambda message, arrays: Message(Error(0, "killed"), reply_to=message),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_killed_client_is_left_out_and_the_round_goes_on(case, learner, before, parts):
    def hostile(message):
        return HOSTILE[case](message, message.content["arrays"].to_torch_state_dict())

    found = start(Mean(), app_of(learner, parts, hostile), before)
    metrics = found.train_metrics_clientapp[1]
    assert list(metrics["refused"]) == [1]
    assert list(metrics["kept"]) == [2, 3, 4]
    clients = [Client(part) for part in parts]
    sent = [client.sends(learner, before, seed_of(0, 0, at), attacking=False) for at, client in enumerate(clients)]
    from mbdefense.federated.server import aggregate

    wanted = aggregate(Mean(), before, sent[1:], [len(part.labels) for part in parts[1:]]).weights
    arrays = found.arrays.to_torch_state_dict()
    assert all(torch.allclose(arrays[name], value) for name, value in wanted.items())


FIGURES = {
    "other names": {"num-examples": 5, "more": 1.0},
    "a list": {"num-examples": 5, "loss": [1.0, 2.0]},
    "no weight": {"loss": 1.0},
    "weights that cancel out": {"num-examples": -15, "loss": 1.0},
    "none": None,
}


@pytest.mark.parametrize("part", ["train", "evaluate"])
@pytest.mark.parametrize("case", FIGURES)
def test_hostile_figures_of_a_client_end_no_round(part, case, learner, before, parts):
    app = ClientApp()

    def said(message, arrays, usual):
        at = message.metadata.dst_node_id
        given = FIGURES[case] if at == 1 and message.metadata.message_type == part else usual
        records = {} if given is None else {"metrics": MetricRecord(given)}
        return Message(RecordDict({**arrays, **records}), reply_to=message)

    @app.train()
    def train(message, context):
        return said(message, {"arrays": message.content["arrays"]}, {"num-examples": 5, "loss": 0.5})

    @app.evaluate()
    def evaluate(message, context):
        return said(message, {}, {"num-examples": 5, "loss": 0.5})

    found = RobustFedAvg("mean").start(InProcess(app, 4), ArrayRecord(before), num_rounds=2)
    assert set(found.train_metrics_clientapp) == {1, 2}
    figures = {"train": found.train_metrics_clientapp, "evaluate": found.evaluate_metrics_clientapp}
    if (part, case) != ("evaluate", "weights that cancel out"):  # in training that client is refused
        assert figures[part][2]["loss"] == pytest.approx(0.5)


def test_no_client_can_tell_the_noise_of_a_round(learner, before, parts):
    """Its seed is the server's own: a round's number, which all know, does not give it."""
    once, again = (start(FLAME(noise=0.5), app_of(learner, parts), before).arrays.to_torch_state_dict() for _ in "12")
    assert not torch.equal(once["head.weight"], again["head.weight"])


def test_no_usable_client_is_an_error_with_the_reason(learner, before, parts):
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(UserError, match="none of 4 clients sent usable weights"):
        start("mars", app, before)


def test_a_mod_scales_what_a_client_sends(learner, before, parts):
    plain = start(Mean(), app_of(learner, parts), before).arrays.to_torch_state_dict()
    scaled = start(Mean(), app_of(learner, parts, mods=[scaling_mod(3.0)]), before).arrays.to_torch_state_dict()
    for name in ("conv1.weight", "head.weight"):
        assert torch.allclose(scaled[name] - before[name], 3 * (plain[name] - before[name]), atol=1e-5)


def test_a_mod_shortens_what_a_client_sends(learner, before, parts):
    plain = start(Mean(), app_of(learner, parts), before).arrays.to_torch_state_dict()
    assert float(flat(plain, before).norm()) > 0.2
    for radius, least in ((0.1, 0.0), (1e6, 0.2)):
        made = start(Mean(), app_of(learner, parts, mods=[projecting_mod(radius)]), before).arrays.to_torch_state_dict()
        assert least < float(flat(made, before).norm()) <= radius * 1.0001


def test_a_rule_may_be_given_and_an_unknown_one_is_refused():
    assert RobustFedAvg(MARS(epsilon=1.0)).rule == MARS(epsilon=1.0)
    assert RobustFedAvg("mars:linear=true", min_train_nodes=3).min_train_nodes == 3
    with pytest.raises(UserError, match="did you mean 'mars'"):
        RobustFedAvg("mras")
    with pytest.raises(UserError, match="not calibrated"):  # before anybody has trained
        RobustFedAvg("mars_larger:epsilon=calibrated")


def test_nothing_is_sent_home():
    """Though Flower was imported first, as here and in a ServerApp."""
    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.slow
def test_it_runs_under_flowers_own_engine_with_clients_that_die_or_send_nonsense(learner, before, parts):
    ray = pytest.importorskip("ray")
    # Flower takes a Ray that runs; one that does not start in its 30 s, as on a busy machine, would leave it waiting.
    try:
        ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
    except Exception as error:  # Ray has no class of its own for that
        pytest.skip(f"Ray does not start here: {error}")  # Flower's engine runs on nothing else
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    server, found = ServerApp(), []

    @server.main()
    def main(grid, context):
        # Nodes connect one by one; the round waits for all.
        strategy = RobustFedAvg("multi_krum", fraction_evaluate=0.0, min_available_nodes=9)
        found.append(strategy.start(grid, ArrayRecord(before), num_rounds=2, train_config=ConfigRecord({})))

    app = ClientApp()

    @app.train()
    def train(message, context):
        """In a process that cannot import this module, so that nothing of it is named here."""
        at = int(context.node_config["partition-id"])
        arrays = message.content["arrays"].to_torch_state_dict()
        if at == 4:
            raise RuntimeError("killed")
        if at == 8 and message.content["config"]["server-round"] == 2:
            # Nobody after it: Flower's engine gives messages to a process that is gone, too.
            os._exit(1)
        if at == 5:
            return Message(RecordDict(), reply_to=message)
        made = {
            6: lambda: {name: value * float("nan") for name, value in arrays.items()},
            7: lambda: {name: value[:1] for name, value in arrays.items() if value.ndim},
            8: lambda: {"x": arrays["head.bias"]},
        }.get(at, lambda: learner.train(arrays, parts[at], at))()  # fmt: skip
        metrics = MetricRecord({"num-examples": 30})
        return Message(RecordDict({"arrays": ArrayRecord(made), "metrics": metrics}), reply_to=message)

    run_simulation(server, app, num_supernodes=9, backend_config={"client_resources": {"num_cpus": 1}})
    first, second = (found[0].train_metrics_clientapp[number] for number in (1, 2))
    assert len(first["refused"]) == 5
    assert sorted(first["refused"]) == sorted(second["refused"])
    assert len(first["kept"]) == 3  # of four that are left, one of whom may be an attacker
