"""Errors of the whole package. Each message says what was got, what was expected and what to do."""

from __future__ import annotations


class FundusRtError(Exception):
    """Base class of every error that the package raises on purpose."""


class CardError(FundusRtError):
    """A model card does not validate; the message lists every problem at once."""


class DecodeError(FundusRtError):
    """A file is not a picture that can be read, or only a part of one."""


class NotFundusError(FundusRtError):
    """A picture was read but no fundus photograph is in it."""


class EyeError(FundusRtError):
    """The eye is unknown where the model has to know it, or two sources disagree."""


class ModelFileError(FundusRtError):
    """A file is not an ONNX model of this package, or its card and its graph disagree."""


class BackendUnavailableError(FundusRtError):
    """A backend is not installed, or did not grant what was asked for."""


class EngineError(FundusRtError):
    """A TensorRT engine cannot be built, read or used."""


class EngineMissingError(EngineError):
    """No engine of this model for this machine; the message gives the command that builds it."""


class EngineStaleError(EngineMissingError):
    """An engine is there, but for another TensorRT, GPU or driver, or it is damaged; the message says which."""


class StoppedError(FundusRtError):
    """What computes cannot be trusted or is gone: there is no further answer until the model is opened again."""


class DeviceLostError(StoppedError):
    """The GPU or its driver stopped answering."""


class DeviceMemoryError(StoppedError):
    """The memory of what computes, a GPU's or the system's, is not enough for what was asked."""


class ReceiptError(StoppedError):
    """The network answered for another input than the one that was sent."""


class CanaryError(StoppedError):
    """The network does not give its known answers to its known pictures."""


class CameraError(FundusRtError):
    """A film cannot be read, or a camera that was lost did not come back in time."""


class UnsupportedCheckpointError(FundusRtError):
    """A checkpoint cannot be read, or holds another network than its card expects."""


class UntrustedCheckpointError(UnsupportedCheckpointError):
    """Reading the checkpoint would execute code that it carries."""


class ParityError(FundusRtError):
    """The converted model does not answer as the original framework does."""


class UsageError(FundusRtError):
    """The call itself is wrong: an option, a path or an output that cannot be used."""


class CertificateError(FundusRtError):
    """An answer was asked for with a certificate only and none counts here, or none can be issued; the message says why."""
