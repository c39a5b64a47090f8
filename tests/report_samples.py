"""Three reports as they come out of real work, for the tests of the report files and for a look at the page.

``python -m tests.report_samples FOLDER`` writes them all. The numbers are drawn from a seeded generator: they are no results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fundus_rt.benchmarks.reports.document import Picture, Plot, ReportDocument, Row, Section, Series, Table, Verdict
from fundus_rt.benchmarks.reports.report_files import write_report
from fundus_rt.benchmarks.reports.thumbnails import thumbnail

EXAMPLES = Path(__file__).resolve().parent.parent / "models" / "examples"
STAGES = ("decode", "field of view", "mirror", "resize", "normalisation", "fp32 graph", "lower precision", "engine")
HOSTILE = '<script>alert("1")</script> & $x_1$.jpg'


def parity_sample() -> ReportDocument:
    """A two-class model whose converted file changes three decisions of 413."""
    chance = np.random.default_rng(5)
    original = chance.beta(0.6, 0.6, 413)
    found = np.clip(original + chance.normal(0, 0.004, 413), 0, 1)
    found[:3] = original[:3] + np.asarray([0.031, -0.044, 0.027])
    changed = Series("decision changed", tuple(original[:3]), tuple(found[:3]))
    same = Series("decision the same", tuple(original[3:]), tuple(found[3:]))
    middle = (original + found) / 2
    difference = found - original
    spread = 1.96 * float(difference.std(ddof=1))
    shares = (0.02, 0.0, 0.0, 0.91, 0.0, 4e-6, 0.05, 0.02)
    worst = [("IDRiD_005.jpg", "left", 0.484, 0.515), ("hrf_06_h.jpg", "right", 0.522, 0.478), (HOSTILE, "left", 0.49, 0.517)]

    def rows() -> Iterator[Row]:
        for number, (before, after) in enumerate(zip(original, found, strict=True)):
            name = HOSTILE if number == 2 else f"patient_{number:04d}.jpg"
            yield {
                "file": name,
                "eye": "left" if number % 2 else "right",
                "original": float(before),
                "found": float(after),
                "difference": float(after - before),
                "decision changed": number < 3,
            }

    return ReportDocument(
        "parity",
        "joir-sex-retina: the published .h5 against joir-sex-retina.fp16.onnx",
        Verdict(False, "3 of 413 photographs would have had another answer (0.7 %; at most 2.1 % at 95 % confidence)."),
        {
            "checkpoint": "model_sex.h5",
            "checkpoint SHA-256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "examined file": "joir-sex-retina.fp16.onnx",
            "examined SHA-256": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            "photographs": "413 from 516 files",
            "original framework": "tensorflow 2.21.0, tf_keras 2.21.0",
            "backend": "onnxruntime 1.31.1, CPUExecutionProvider",
            "machine": "x86_64, 2 cores, Linux",
        },
        {"sex": {"decisions_changed": 3, "of": 413, "largest": float(np.abs(difference).max()), "kappa": float("nan")}},
        (
            Section(
                "What would have changed",
                (
                    "Three photographs get another answer from the converted file than from the original. All three lie within "
                    "0.05 of the operating point of 0.5.",
                    "The largest difference in probability is 0.044, the mean 0.0033.",
                ),
                (
                    Table(
                        "Agreement with the original",
                        (
                            "Output",
                            "Photographs",
                            "Mean difference",
                            "95th percentile",
                            "Largest",
                            "Decisions changed",
                            "At most",
                        ),
                        (("sex", 413, 0.00331, 0.00814, 0.0442, "3 of 413", "2.1 %"),),
                        "Differences are of the probability of the second label, male.",
                    ),
                    Table(
                        "Photographs whose answer changed",
                        ("Photograph", "Eye", "Original", "Converted", "Difference"),
                        tuple((name, eye, before, after, after - before) for name, eye, before, after in worst),
                    ),
                ),
                (
                    Plot(
                        "scatter",
                        "Probability of male, original and converted",
                        "original, probability",
                        "converted, probability",
                        (same, changed),
                        "Points on the dashed line have the same probability from both.",
                        identity=True,
                    ),
                    Plot(
                        "bland_altman",
                        "Difference by size of the answer",
                        "mean of both, probability",
                        "converted - original, probability",
                        (
                            Series("photographs", tuple(middle), tuple(difference)),
                            Series("mean", (), (float(difference.mean()),)),
                            Series("upper limit", (), (float(difference.mean()) + spread,)),
                            Series("lower limit", (), (float(difference.mean()) - spread,)),
                        ),
                        "Between the limits of agreement lie 95 % of the differences.",
                    ),
                ),
            ),
            Section(
                "Where it comes from",
                ("91 % of the difference is the resize.", "The stages together account for the whole of the difference."),
                (
                    Table(
                        "Difference by stage",
                        ("Stage", "Share", "Mean difference, probability", "Alone"),
                        tuple(
                            (stage, share, share * 0.0033, share * 0.0034) for stage, share in zip(STAGES, shares, strict=True)
                        ),
                    ),
                ),
                (
                    Plot(
                        "stacked_bars",
                        "Share of each stage",
                        "output",
                        "share of the absolute difference",
                        tuple(Series(stage, (), (share, share)) for stage, share in zip(STAGES, shares, strict=True)),
                        ticks=("sex", "worst photograph"),
                    ),
                    Plot(
                        "histogram",
                        "Distribution of the differences",
                        "converted - original, probability",
                        "photographs",
                        (Series("differences", (*difference, float("nan"))),),
                    ),
                ),
            ),
            Section(
                "Worst photographs",
                pictures=(
                    Picture("IDRiD_005.jpg: 0.484 became 0.515", thumbnail((EXAMPLES / "idrid_005.jpg").read_bytes())),
                    Picture("hrf_06_h.jpg: 0.522 became 0.478", thumbnail((EXAMPLES / "hrf_06_h.jpg").read_bytes())),
                    Picture(f"{HOSTILE}: 0.490 became 0.517", thumbnail((EXAMPLES / "chase_01L.jpg").read_bytes())),
                ),
            ),
        ),
        rows,
    )


def evaluation_sample(photographs: int = 2600) -> ReportDocument:
    """An age model on labelled photographs, with a second output of grades."""
    chance = np.random.default_rng(7)
    age = chance.uniform(22, 88, photographs)
    found = age + chance.normal(0.4, 3.0, photographs) - 0.05 * (age - 55)
    difference = found - age
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1))
    limit = 1.96 * deviation
    fpr = np.linspace(0, 1, 200)
    tpr = fpr**0.08
    bands = ("20 to 39", "40 to 59", "60 to 79", "80 and older")
    grades = ("none", "mild", "moderate", "severe", "proliferative")
    matrix = ((410, 21, 6, 0, 0), (30, 88, 22, 1, 0), (9, 25, 201, 18, 2), (0, 1, 19, 61, 9), (0, 0, 3, 11, 43))
    lines = (
        Series("mean", (), (mean,), (mean - 0.11,), (mean + 0.11,)),
        Series("upper limit", (), (mean + limit,), (mean + limit - 0.2,), (mean + limit + 0.2,)),
        Series("lower limit", (), (mean - limit,), (mean - limit - 0.2,), (mean - limit + 0.2,)),
    )
    return ReportDocument(
        "evaluation",
        "joir-age on clinic_2026",
        Verdict(None, "On average, the answered age is 2.43 years away from the true one (2.36 to 2.50 at 95 % confidence)."),
        {"model": "joir-age.onnx", "model SHA-256": "ab" * 32, "labels": "clinic_2026.csv", "machine": "x86_64, 2 cores, Linux"},
        {"age": {"mae": 2.43, "interval": [2.36, 2.5]}},
        (
            Section(
                "Age",
                (f"The answer is {mean:.1f} years too high on average; older eyes are answered too young.",),
                (
                    Table(
                        "Mean absolute error, years",
                        ("Group", "Photographs", "Error", "95 % interval", "Bias"),
                        (
                            ("all", photographs, 2.43, "2.36 to 2.50", mean),
                            *((f"age {band}", 650, 2.2 + 0.1 * n, f"{2.1 + 0.1 * n:.2f} to {2.3 + 0.1 * n:.2f}", 0.9 - 0.6 * n)
                              for n, band in enumerate(bands)),
                            ("camera Topcon NW400", 12, None, "–", 2e-8),
                        ),
                        "A dash: fewer than 20 photographs, too few for an interval.",
                    ),
                ),
                (
                    Plot("bland_altman", "Answered and true age (Bland-Altman)", "mean of both, years", "answer - truth, years",
                         (Series("photographs", tuple((age + found) / 2), tuple(difference)), *lines),
                         "95 % of the differences lie between the limits of agreement."),
                    Plot("scatter", "Answered over true age", "true age, years", "answered age, years",
                         (Series("photographs", tuple(age), tuple(found)),), identity=True),
                    Plot("bars", "Error by age band", "age band, years", "mean absolute error, years",
                         (Series("left eyes", (), (2.2, 2.3, 2.4, 2.9), (2.0, 2.1, 2.2, 2.3), (2.4, 2.5, 2.6, 3.5)),
                          Series("right eyes", (), (2.1, 2.3, 2.5, 2.7), (1.9, 2.1, 2.3, 2.1), (2.3, 2.5, 2.7, 3.3))),
                         ticks=bands),
                    Plot("histogram", "Ages in the set", "age, years", "photographs",
                         (Series("true", tuple(age)), Series("answered", tuple(found)))),
                ),
            ),
            Section(
                "Sex",
                ("The area under the ROC curve is 0.971 (0.962 to 0.980).",),
                plots=(
                    Plot("roc", "ROC curve", "false positive rate (1 - specificity)", "sensitivity",
                         (Series("AUC 0.971 (0.962 to 0.980)", tuple(fpr), tuple(tpr), tuple(np.clip(tpr - 0.03, 0, 1)),
                                 tuple(np.clip(tpr + 0.02, 0, 1))),
                          Series("operating point 0.41", (0.08,), (0.93,), (0.90,), (0.95,)))),
                    Plot("calibration", "Calibration", "mean predicted probability", "observed share of men",
                         (Series("tenths", (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95), (0.03, 0.12, 0.33, 0.46, 0.75, 0.9, 0.97),
                                 (0.01, 0.08, 0.25, 0.38, 0.66, 0.83, 0.93), (0.06, 0.18, 0.41, 0.55, 0.83, 0.95, 0.99)),)),
                ),
            ),
            Section(
                "Grade of retinopathy",
                ("Quadratic weighted kappa is 0.89 (0.87 to 0.91).",),
                plots=(
                    Plot("confusion", "Grades", "answered grade", "true grade", matrix=matrix, ticks=grades),
                    Plot("bars", "Sensitivity by camera", "camera", "sensitivity",
                         (Series("sensitivity", (), (0.93, 0.9, 0.81), (0.9, 0.86, 0.6), (0.95, 0.93, 0.93)),),
                         ticks=("Topcon NW400", "Canon CR-2 AF", "a very long name of a camera that no axis holds")),
                ),
            ),
        ),
        lambda: ({"file": f"{n}.jpg", "age": float(a), "answer": float(found[n])} for n, a in enumerate(age)),
    )  # fmt: skip


def robustness_sample() -> ReportDocument:
    """Answers under degraded photographs, with thumbnails."""
    severity = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    kinds = {"blur": 0.4, "darkness": 0.9, "haze": 1.3, "JPEG": 0.2}
    curves = tuple(
        Series(name, severity, tuple(slope * s**1.4 for s in severity), tuple(0.8 * slope * s**1.4 for s in severity),
               tuple(1.2 * slope * s**1.4 for s in severity))
        for name, slope in kinds.items()
    )  # fmt: skip
    many = tuple(Series(f"degradation number {n}", severity, tuple(n * s for s in severity)) for n in range(7))
    names = ("idrid_085.jpg", "idrid_111_12mp.jpg", "chase_03R.jpg", "haggstrom_right.jpg", "idrid_325.jpg")
    pictures = [thumbnail((EXAMPLES / name).read_bytes()) for name in names]
    return ReportDocument(
        "robustness",
        "joir-age under degraded photographs",
        Verdict(True, "No answer moved by more than 5 years at a severity that a technician would let pass."),
        {"model": "joir-age.onnx", "seed": "2026"},
        {"blur": {"3": 1.9}},
        (
            Section(
                "How the answer moves",
                plots=(
                    Plot("lines", "Change of the age by severity", "severity (0 is the photograph itself)", "mean change, years",
                         curves, ticks=("0", "1", "2", "3", "4", "5")),
                    Plot("lines", "Seven degradations", "severity", "mean change, years", many),
                ),
            ),
            Section(
                "What it looked like",
                ("Each degradation at severity 3.",),
                pictures=tuple(Picture(f"haze, severity {n}: 61.{n} years", jpeg) for n, jpeg in enumerate(pictures)),
            ),
        ),
        [
            {"file": "=cmd|' /C calc'!A0", "severity": 3, "change": -1.25, "note": "@home"},
            {"file": "b.jpg", "change": float("inf")},
        ],
    )  # fmt: skip


SAMPLES = {"parity": parity_sample, "evaluation": evaluation_sample, "robustness": robustness_sample}

if __name__ == "__main__":
    for name, sample in SAMPLES.items():
        print(write_report(sample(), Path(sys.argv[1]) / name))
