"""Faces are changed as their changes say, and by nothing else."""

import math

import pytest
import torch
from conftest import draw_face

from facevae.data.augment import NUM_CHANGES, change, draw_changes
from facevae.data.image_tensors import from_pixels
from facevae.system.runtime import generator

RIGHT, DOWN, ZOOM, TURN, BRIGHTNESS, CONTRAST, SATURATION = range(NUM_CHANGES)


@pytest.fixture(scope="module")
def faces():
    import numpy as np

    return from_pixels(torch.from_numpy(np.stack([np.asarray(draw_face(i, 64)) for i in range(3)])))


def changed(faces, **amounts):
    changes = torch.zeros(len(faces), NUM_CHANGES)
    for name, amount in amounts.items():
        changes[:, globals()[name]] = amount
    return change(faces, changes)


def dot(row, column):
    """A soft spot on black, of 64 pixels a side."""
    places = torch.arange(64.0)
    weights = [(-((places - at) / 3).square()).exp() for at in (row, column)]
    return (weights[0][:, None] * weights[1]).expand(1, 3, 64, 64)


def centre(images):
    """Row and column of the middle of what is bright."""
    light, places = images[0, 0], torch.arange(64.0)
    total = light.sum()
    return (light.sum(1) @ places / total).item(), (light.sum(0) @ places / total).item()


def test_no_changes_leave_faces_as_they_are(faces):
    torch.testing.assert_close(changed(faces), faces)


def test_what_is_drawn_changes_every_face_alike_each_time():
    drawn = draw_changes(5000, generator(3))
    assert drawn.equal(draw_changes(5000, generator(3)))
    assert drawn.any(1).all()
    assert drawn.abs().max() == 2.5
    moved, lit = drawn[:, :4].any(1), drawn[:, 4:].any(1)
    # of .4 x .4 that would be left as they are, all are moved
    assert moved.float().mean() == pytest.approx(0.76, abs=0.03)
    assert lit.float().mean() == pytest.approx(0.6, abs=0.03)
    assert drawn[moved, 0].std() == pytest.approx(1, abs=0.05)


def test_faces_are_moved_zoomed_and_turned():
    assert centre(changed(dot(32, 20), RIGHT=2.0)) == pytest.approx((32, 22.88), abs=0.2)
    assert centre(changed(dot(32, 20), DOWN=2.0)) == pytest.approx((34.88, 20), abs=0.2)
    away = 31.5 - 12 * math.exp(0.05 * 2)
    assert centre(changed(dot(31.5, 19.5), ZOOM=2.0)) == pytest.approx((31.5, away), abs=0.2)
    turned = 12 * math.sin(math.radians(8))
    row, column = centre(changed(dot(31.5, 19.5), TURN=2.0))
    assert abs(row - 31.5) == pytest.approx(turned, abs=0.2)
    assert column == pytest.approx(31.5 - 12 * math.cos(math.radians(8)), abs=0.2)


def test_light_changes_as_it_is_named(faces):
    muted = 0.3 + 0.4 * faces  # so that nothing is cut off
    brighter = changed(muted, BRIGHTNESS=1.0)
    torch.testing.assert_close(brighter, muted + 0.07)
    contrast = changed(muted, CONTRAST=1.0)
    torch.testing.assert_close(contrast.mean((1, 2, 3)), muted.mean((1, 2, 3)))
    assert (contrast.std((1, 2, 3)) / muted.std((1, 2, 3))).tolist() == pytest.approx(
        [math.exp(0.15)] * 3
    )
    greyer = changed(muted, SATURATION=-2.0)
    torch.testing.assert_close(greyer.mean(1), muted.mean(1))
    spread = [(images - images.mean(1, keepdim=True)).std() for images in (greyer, muted)]
    assert spread[0] / spread[1] == pytest.approx(math.exp(-0.6), rel=1e-3)


def test_each_face_has_changes_of_its_own(faces):
    changes = torch.zeros(3, NUM_CHANGES)
    changes[1, TURN], changes[2, BRIGHTNESS] = 1.0, 1.0
    found = change(faces, changes)
    torch.testing.assert_close(found[0], faces[0])
    torch.testing.assert_close(found[1], changed(faces[1:2], TURN=1.0)[0])
    torch.testing.assert_close(found[2], changed(faces[2:], BRIGHTNESS=1.0)[0])
    assert found.min() >= 0
    assert found.max() <= 1
