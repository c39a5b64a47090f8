"""The acquisition network: a small residual network that finds disc and fovea and reads the eye from what it found.

Input `frames`: uint8 [N, 224, 224, 3], BGR. The first outputs are maps of the disc's and the fovea's place; the eye head
reads the features at these two places, their mean over the picture, and the places themselves.
"""

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 224
GRID = 14
WIDTH = 96
EYE_CLASSES = 6

# Levels at or below this in every channel are taken for the black surround when the picture's own mean and spread are
# measured; JPEG's ripples around the rim stay below it.
SURROUND_LEVEL = 12.0


def _unit(inputs, outputs, stride=1, dilation=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


def normalised(levels):
    """Return six planes: the levels around their middle, and the levels in units of their spread inside the field.

    levels: float32 [N, 3, 224, 224], 0..255. Mean and spread are those of the picture reduced by four: cheaper, and deaf
    to noise.
    """
    small = F.avg_pool2d(levels, 4)
    inside = (small.amax(dim=1, keepdim=True) > SURROUND_LEVEL).to(levels.dtype)
    share = inside.mean(dim=(2, 3), keepdim=True) + 1e-3
    mean = (small * inside).mean(dim=(2, 3), keepdim=True) / share
    away = (small - mean) * inside
    spread = ((away * away).mean(dim=(2, 3), keepdim=True) / share + 4.0).sqrt()
    relative = ((levels - mean) * (0.5 / spread)).clamp(-2.0, 2.0)
    return torch.cat([levels * (1.0 / 127.5) - 1.0, relative], dim=1)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, width, dilation=1):
        super().__init__()
        self.first = _unit(width, width)
        self.second = _unit(width, width, dilation=dilation)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.first(x))))


class AcquisitionNetwork(nn.Module):
    """Six planes of `normalised`, float32 [N, 6, 224, 224] -> dict of logits and maps; see `forward`."""

    def __init__(self):
        super().__init__()
        # One overlapping 6 x 6 step to a quarter of the size keeps the fine detail that blur takes away, at a third of
        # the cost of two 3 x 3 steps.
        self.fine = nn.Sequential(nn.Conv2d(6, 32, 6, 4, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), _unit(32, 32), nn.ReLU())
        self.middle = nn.Sequential(_unit(32, 48, stride=2), nn.ReLU(), Residual(48))
        self.coarse = nn.Sequential(
            _unit(48, WIDTH, stride=2), nn.ReLU(), Residual(WIDTH), Residual(WIDTH, dilation=2), Residual(WIDTH, dilation=3)
        )
        self.places = nn.Conv2d(WIDTH, 2, 1)
        self.absence = nn.Linear(WIDTH, 2)
        self.eye = nn.Sequential(nn.Linear(3 * WIDTH + 6, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, EYE_CLASSES))
        self.quality = nn.Sequential(nn.Linear(WIDTH + 2 * 32 + 48, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
        self.kind = nn.Sequential(nn.Linear(2 * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))
        line = (torch.arange(GRID, dtype=torch.float32) + 0.5) / GRID
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], dim=2).reshape(GRID * GRID, 2))

    def forward(self, planes):
        """Return eye logits [N, 6], clean logit [N, 1], fundus logit [N, 1], place logits [N, 2, GRID^2 + 1].

        The last place logit stands for "not in the picture". The clean logit only helps to train the shared layers; what
        is shipped as gradability is the answer of `QualityNetwork`.
        """
        fine = self.fine(planes)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        mean = coarse.mean(dim=(2, 3))
        maps = self.places(coarse).flatten(2)
        places = torch.cat([maps, self.absence(mean).unsqueeze(2)], dim=2)
        weights = maps.softmax(dim=2)
        present = 1.0 - places.softmax(dim=2)[:, :, -1]
        found = torch.matmul(weights, coarse.flatten(2).transpose(1, 2)) * present.unsqueeze(2)
        position = torch.matmul(weights, self.grid)
        where = (position - 0.5) * present.unsqueeze(2)
        eye = self.eye(torch.cat([mean, found.flatten(1), where.flatten(1), present], dim=1))
        spread = fine.square().mean(dim=(2, 3)).add(1e-4).sqrt()
        quality = torch.cat([mean, fine.mean(dim=(2, 3)), spread, middle.mean(dim=(2, 3))], dim=1)
        kind = torch.cat([mean, coarse.amax(dim=(2, 3))], dim=1)
        return {
            "eye": eye,
            "clean": self.quality(quality),
            "fundus": self.kind(kind),
            "places": places,
            "position": position,
            "present": present,
        }


class QualityNetwork(nn.Module):
    """Six planes of `normalised`, float32 [N, 6, 224, 224] -> logit [N, 1] of being undegraded.

    Blur and small spots live in detail that the other network soon gives up, so this one keeps a finer grid. They are
    told by how much of what there is: mean, spread and maximum of the features of three scales.
    """

    def __init__(self):
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(6, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
                nn.Sequential(_unit(16, 24, stride=2), nn.ReLU(), _unit(24, 32), nn.ReLU()),
                nn.Sequential(_unit(32, 48, stride=2), nn.ReLU(), _unit(48, 48), nn.ReLU()),
            ]
        )
        self.head = nn.Sequential(nn.Linear(3 * (16 + 32 + 48), 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 1))

    def forward(self, planes):
        statistics = []
        for scale in self.scales:
            planes = scale(planes)
            spread = planes.square().mean(dim=(2, 3)).add(1e-4).sqrt()
            statistics += [planes.mean(dim=(2, 3)), spread, planes.amax(dim=(2, 3))]
        return self.head(torch.cat(statistics, dim=1))
