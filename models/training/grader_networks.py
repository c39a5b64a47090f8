"""The five networks of the demonstration graders: how each is made, saved, and what its card says."""

from dataclasses import dataclass

from fundus_rt.converters.backends import require_keras, require_torchvision
from fundus_rt.models.card import Citation, ModelCard, OutputSpec, PreprocessingSpec

GRADES = ("no DR", "mild NPDR", "moderate NPDR", "severe NPDR", "PDR")

# Scale, mean and deviation: of keras.applications' mode "tf", of a network that scales by itself, of torchvision.
MINUS_ONE_TO_ONE = (1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
GREY_LEVELS = (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

TOLERANCE, BUDGET = 1e-3, 2e-2


@dataclass(frozen=True)
class Grader:
    """One network and the way in which its authors would have trained it.

    factory: its name in keras.applications or torchvision.models. family: what the card accepts. size: input, pixels.
    interpolation: `load_img`'s default for MobileNet, torchvision's of its own recipe for Swin, else bilinear.
    rate: the highest learning rate.
    """

    title: str
    framework: str
    factory: str
    family: str
    size: int
    interpolation: str
    normalisation: tuple
    rate: float

    @property
    def suffix(self):
        """Ending of the checkpoint."""
        return ".h5" if self.framework == "keras" else ".pth"


GRADERS = {
    "mobilenet": Grader("MobileNet", "keras", "MobileNet", "mobilenet", 128, "keras-nearest", MINUS_ONE_TO_ONE, 1e-3),
    "efficientnet-b0": Grader(
        "EfficientNet-B0", "keras", "EfficientNetB0", "efficientnet-b0", 128, "pillow-bilinear", GREY_LEVELS, 2e-3
    ),
    "inception-v3": Grader("Inception-v3", "keras", "InceptionV3", "inception-v3", 96, "pillow-bilinear", MINUS_ONE_TO_ONE, 1e-3),
    "resnet-50": Grader("ResNet-50", "pytorch", "resnet50", "resnet-50", 96, "pillow-bilinear", IMAGENET, 1e-3),
    "swin-t": Grader("Swin-T", "pytorch", "swin_t", "swin", 56, "pillow-bicubic", IMAGENET, 5e-4),
}


def card_of(name, size, performance):
    """Return the card of a grader. performance: one sentence on what was measured."""
    grader = GRADERS[name]
    output = OutputSpec("dr_grade", "multiclass", "probability", TOLERANCE, GRADES, budget=BUDGET)
    scale, mean, std = grader.normalisation
    return ModelCard(
        name=f"grader-{name}",
        title=f"Diabetic retinopathy grade, {grader.title}, a demonstration",
        architecture=grader.title,
        families=(grader.family,),
        framework=grader.framework,
        outputs=(output,),
        preprocessing=PreprocessingSpec((size, size), "field-of-view", grader.interpolation, "RGB", scale, mean, std),
        laterality="none",
        weights="Made by models/training/train_graders.py from photographs of IDRiD; not published.",
        weights_url="",
        licence="Apache-2.0; trained on IDRiD (CC BY 4.0).",
        citation=Citation(
            "Porwal P, Pachade S, Kokare M, et al. Indian Diabetic Retinopathy Image Dataset (IDRiD). Data. 2018;3(3):25.",
            "https://doi.org/10.3390/data3030025",
        ),
        performance=performance,
        limits=(
            "Trained from random weights for minutes on some three hundred small photographs of one camera: it shows what a "
            "conversion does to real decisions, and is of no use for grading.",
        ),
    ).validate()


def keras_network(name, size):
    """Return a Keras 2 network with random weights that ends with a softmax over the grades."""
    _, keras = require_keras()
    base = getattr(keras.applications, GRADERS[name].factory)(include_top=False, weights=None, input_shape=(size, size, 3))
    pooled = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(base.output))
    return keras.Model(base.input, keras.layers.Dense(len(GRADES), activation="softmax")(pooled), name=base.name)


def torch_network(name):
    """Return a network of torchvision with random weights that ends with logits of the grades."""
    return getattr(require_torchvision().models, GRADERS[name].factory)(weights=None, num_classes=len(GRADES))
