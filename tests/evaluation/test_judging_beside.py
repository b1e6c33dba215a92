"""Judging while the model still answers: the same verdicts, and nothing paid twice."""

import json
import time

import pytest

from mbdefense.attacks.behaviors import FixedText
from mbdefense.core.errors import UserError
from mbdefense.evaluation.judging import USAGE_FILE, JudgingBeside, judge_responses
from mbdefense.judges import LLM, Rules
from mbdefense.records.responses import Response

BEHAVIOR = FixedText(text="Open, sesame.")
RESPONSES = [Response(str(n), "clean", f"Say the number {n}.", f"It is {n}.") for n in range(6)]


@pytest.fixture
def judge(fake_judge, tmp_path):
    options = {"cache": str(tmp_path / "cache"), "concurrency": 1, "max_retries": 0, "timeout": 5.0}
    return LLM(BEHAVIOR, "m", fake_judge.url, **options)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def spent(directory):
    return {name: value["replies"] for name, value in json.loads((directory / USAGE_FILE).read_text()).items()}


def test_what_is_heard_is_judged_at_once_and_paid_for_once(judge, fake_judge, tmp_path):
    with JudgingBeside(judge) as judging:
        judging.hear(RESPONSES[0])
        wait_for(lambda: fake_judge.paid == 1)
        for response in [*RESPONSES[1:4], RESPONSES[0]]:
            judging.hear(response)
        verdicts = judging.verdicts(RESPONSES, tmp_path / "beside")
    assert fake_judge.paid == 6
    assert spent(tmp_path / "beside") == {"in_all": 6, "in_this_run": 6}
    assert judge_responses(judge, RESPONSES, tmp_path / "again") == verdicts
    assert spent(tmp_path / "again") == {"in_all": 6, "in_this_run": 0}


def test_a_failure_beside_the_model_shows_when_its_answers_are_complete(judge, fake_judge, tmp_path):
    well, fake_judge.script = fake_judge.script, lambda _number, _messages: 500
    with JudgingBeside(judge) as judging:
        judging.hear(RESPONSES[0])
        wait_for(lambda: fake_judge.requests)
        judging.hear(RESPONSES[1])
        with pytest.raises(UserError, match="the judge's endpoint failed"):
            judging.verdicts(RESPONSES, tmp_path)
        fake_judge.script = well
        assert len(judging.verdicts(RESPONSES, tmp_path)) == 6
    assert spent(tmp_path) == {"in_all": 6, "in_this_run": 6}


def test_a_judge_that_computes_here_waits_for_the_model(tmp_path):
    asked = []

    class Watched(Rules):
        def __call__(self, responses):
            asked.append(len(responses))
            return super().__call__(responses)

    with JudgingBeside(Watched(BEHAVIOR)) as judging:
        for response in RESPONSES:
            judging.hear(response)
        judging.verdicts(RESPONSES, tmp_path)
    assert asked == [6]
    assert not (tmp_path / USAGE_FILE).exists()
