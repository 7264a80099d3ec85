"""Classifiers stored as programs: TorchScript, torch.export and ONNX files. Run only when the person trusts them."""

from robust_models.checkpoints.programs.kinds import Kind, kind_of
from robust_models.checkpoints.programs.load_program import load_program
from robust_models.checkpoints.programs.program import Program

__all__ = ["Kind", "Program", "kind_of", "load_program"]
