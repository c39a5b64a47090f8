"""Turn the trained network into the file that is shipped: uint8 frames in, probabilities and a receipt out."""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from augment import CLEAN, DEGRADED, SIZE, quality_pair, sample
from network import GRID, normalised
from torch import nn
from views import LEFT, RIGHT, SIDEWAYS

OPSET = 17
LARGEST_IR_VERSION = 9

# Held-out samples, drawn with cameras and looks of their own, on which temperature and thresholds are chosen.
CALIBRATION_SAMPLES = 1600
CALIBRATION_PAIRS = 300
CALIBRATION_SEED = 77

# The rule for the threshold of `eye`: the smallest of these at which decided upright views are right this often, and at
# most this share of the views turned by more than 30 degrees is decided at all.
THRESHOLDS = np.round(np.arange(0.50, 0.996, 0.01), 2)
WANTED_PRECISION = 0.98
MOST_TURNED_DECIDED = 0.2

# The rule for `gradability`: this share of undegraded held-out views passes.
CLEAN_KEPT = 0.95

# The rule for `fundus`: refusing a real photograph is the worse mistake, so the threshold is where the lowest 0.2 % of the
# held-out fundus views lie, which are far harder than photographs are.
FUNDUS_QUANTILE = 0.002


class Shipped(nn.Module):
    """The network between uint8 frames and probabilities; see `forward`."""

    def __init__(self, network, quality, temperature):
        super().__init__()
        self.network = network
        self.quality = quality
        self.temperature = temperature

    def forward(self, frames):
        """frames: uint8 [N, S, S, 3], BGR. Return the outputs in the order of OUTPUTS."""
        levels = frames.to(torch.float32)
        receipt = levels.sum(dim=(2, 3))
        planes = normalised(levels.permute(0, 3, 1, 2))
        output = self.network(planes)
        probability = (output["eye"] / self.temperature).softmax(dim=1)
        seen = probability[:, [LEFT, RIGHT]]
        unknown = probability[:, RIGHT + 1 :].sum(dim=1, keepdim=True)
        eye = torch.cat([seen, unknown], dim=1)
        landmarks = torch.cat([output["position"], output["present"].unsqueeze(2)], dim=2).flatten(1)
        return receipt, eye, self.quality(planes).sigmoid(), output["fundus"].sigmoid(), landmarks


OUTPUTS = ("receipt", "eye", "gradability", "fundus", "landmarks")


def outputs_of(network, frames, batch=64):
    """Return the network's outputs by name, as arrays over all frames (uint8 [N, S, S, 3] BGR)."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(frames), batch):
            levels = torch.from_numpy(frames[start : start + batch]).float().permute(0, 3, 1, 2)
            output = network(normalised(levels))
            output = output if isinstance(output, dict) else {"score": output}
            parts.append({name: value.numpy() for name, value in output.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def calibrated(network, quality, held_out, scenes):
    """Return the temperature and thresholds chosen on virtual cameras over the held-out photographs."""
    drawn = [
        sample(held_out, scenes, np.random.default_rng([CALIBRATION_SEED, i]), kind=(CLEAN, DEGRADED)[i % 2])
        for i in range(CALIBRATION_SAMPLES)
    ]
    output = outputs_of(network, np.stack([s.frame for s in drawn]))
    truth = np.array([s.eye for s in drawn])
    temperature = _temperature(output["eye"], truth)
    probability = _softmax(output["eye"] / temperature)[:, [LEFT, RIGHT]]
    threshold = _eye_threshold(probability, truth)
    pairs = [quality_pair(held_out, np.random.default_rng([CALIBRATION_SEED + 1, i])) for i in range(CALIBRATION_PAIRS)]
    clean = outputs_of(quality, np.stack([pair[0] for pair in pairs]))["score"][:, 0]
    fundus_logit = np.quantile(output["fundus"][:, 0], FUNDUS_QUANTILE)
    decided, right = probability.max(axis=1) >= threshold, probability.argmax(axis=1) == truth
    return {
        "samples": CALIBRATION_SAMPLES,
        "temperature": round(float(temperature), 4),
        "eye_threshold": threshold,
        "eye_decided_share_upright": round(float(decided[truth <= RIGHT].mean()), 4),
        "eye_right_when_decided_upright": round(float(right[decided & (truth <= RIGHT)].mean()), 4),
        "eye_decided_share_upside_down": round(float(decided[(truth > RIGHT) & (truth < SIDEWAYS)].mean()), 4),
        "gradability_threshold": float(f"{_sigmoid(np.quantile(clean, 1.0 - CLEAN_KEPT)):.3g}"),
        "fundus_threshold": float(f"{_sigmoid(fundus_logit):.3g}"),
    }


def _eye_threshold(probability, truth):
    """Return the threshold that the rule above gives; 1 if none fulfils it."""
    upright, turned = truth <= RIGHT, (truth > RIGHT) & (truth <= SIDEWAYS)
    right = probability.argmax(axis=1) == truth
    for threshold in THRESHOLDS:
        taken = probability.max(axis=1) >= threshold
        if right[taken & upright].mean() >= WANTED_PRECISION and taken[turned].mean() <= MOST_TURNED_DECIDED:
            return float(threshold)
    return 1.0


def _sigmoid(logit):
    return 1.0 / (1.0 + np.exp(-logit))


def _softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _temperature(logits, truth):
    """Return the temperature, 0.5 to 3, of the lowest cross entropy."""
    candidates = np.geomspace(0.5, 3.0, 60)
    rows = np.arange(len(truth))
    cost = [-np.log(np.maximum(_softmax(logits / t)[rows, truth], 1e-12)).mean() for t in candidates]
    return candidates[int(np.argmin(cost))]


def export(network, quality, calibration, path):
    """Write the ONNX file, checked, with batch normalisation folded and a free batch size."""
    shipped = Shipped(network, quality, calibration["temperature"]).eval()
    example = torch.zeros((1, SIZE, SIZE, 3), dtype=torch.uint8)
    axes = {name: {0: "N"} for name in ("frames", *OUTPUTS)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        torch.onnx.export(
            shipped,
            (example,),
            str(written),
            input_names=["frames"],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
        model = onnx.load(str(written))
        model.ir_version = min(model.ir_version, LARGEST_IR_VERSION)
        model.doc_string = "fundus-rt acquisition: eye, synthetic degradation, fundus or not, disc and fovea"
        onnx.checker.check_model(model, full_check=True)
        _check_contract(model)
        onnx.save(model, str(written))
        # Readers see the old file or the new one, never a part of it.
        os.replace(written, path)


def _check_contract(model):
    """Raise AssertionError unless the first node is Cast, no BatchNormalization is left and the shapes are right."""
    consumers = [node for node in model.graph.node if "frames" in node.input]
    assert [node.op_type for node in consumers] == ["Cast"], consumers
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    assert GRID * 16 == SIZE
