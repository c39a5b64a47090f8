"""From a shipped ONNX file to a TensorRT engine."""

from fundus_rt.converters.engines.engine_build import BuildOptions, engine_from_onnx, flags_of
from fundus_rt.converters.engines.engine_lint import LintFinding, lint_onnx

__all__ = ["BuildOptions", "LintFinding", "engine_from_onnx", "flags_of", "lint_onnx"]
