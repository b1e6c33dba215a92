"""Instruction tuning, weight recovery and CROW's consistency tuning: the only place that trains."""

from mbdefense.train.consistency import ConsistencyObjective, ConsistencyTrainer, tune_consistently
from mbdefense.train.instruction import InstructionTrainer, instruction_tune
from mbdefense.train.recovery import RecoveryObjective, RecoveryTrainer, TripleRow, encode_triples, recover
from mbdefense.train.running import Trained, trackers

__all__ = [
    "ConsistencyObjective",
    "ConsistencyTrainer",
    "InstructionTrainer",
    "RecoveryObjective",
    "RecoveryTrainer",
    "Trained",
    "TripleRow",
    "encode_triples",
    "instruction_tune",
    "recover",
    "trackers",
    "tune_consistently",
]
