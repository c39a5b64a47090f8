"""From published checkpoints to verified ONNX files."""

from fundus_rt.converters.architecture import Architecture, LoadAccount, identify_architecture
from fundus_rt.converters.checkpoint import Checkpoint, read_checkpoint
from fundus_rt.converters.conversion import onnx_from_checkpoint
from fundus_rt.converters.conversion_report import ConversionReport
from fundus_rt.converters.original_preprocessing import Photograph
from fundus_rt.converters.parity import OutputDifference
from fundus_rt.converters.shipping import ship

__all__ = [
    "Architecture",
    "Checkpoint",
    "ConversionReport",
    "LoadAccount",
    "OutputDifference",
    "Photograph",
    "identify_architecture",
    "onnx_from_checkpoint",
    "read_checkpoint",
    "ship",
]
