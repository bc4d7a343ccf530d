"""Pictures show what the tensors hold, to the pixel, and never replace a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_tweedie.errors import UserError
from lightning_tweedie.pictures import grid, panel, save, to_uint8


def test_all_256_levels_survive_a_round_trip() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1).long(), levels)


def test_levels_are_rounded_not_truncated() -> None:
    # Of values spread evenly between two levels as many go up as go down: no image becomes darker.
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    error = to_uint8(x).double() / 127.5 - 1 - x
    assert error.abs().max() <= 1 / 255 + 1e-6
    assert abs(error.mean()) < 1e-6


def test_what_lies_outside_is_clamped() -> None:
    x = torch.tensor([-7.0, 7.0, -torch.inf, torch.inf, torch.nan])
    assert to_uint8(x).tolist() == [0, 255, 0, 255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_at_its_place(channels: int) -> None:
    images = torch.rand(5, channels, 6, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = grid(images, per_row=3, side=8, separator=2)  # enlarged twice
    assert sheet.shape == (2 * 12 + 2, 3 * 8 + 2 * 2, 3)
    white = np.ones(sheet.shape[:2], bool)
    for i, image in enumerate(to_uint8(images)):
        top, left = i // 3 * 14, i % 3 * 10
        shown = sheet[top : top + 12 : 2, left : left + 8 : 2]
        assert np.array_equal(shown, image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        assert np.array_equal(shown, sheet[top + 1 : top + 12 : 2, left + 1 : left + 8 : 2])
        white[top : top + 12, left : left + 8] = False
    assert (sheet[white] == 255).all()


def test_panel_shows_the_same_pixels_under_titles() -> None:
    dark, bright = -torch.ones(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    picture = panel([("dark", dark), ("bright", bright)], per_row=1, side=28)
    black, grey = (picture == 0).all(2), (picture == 128).all(2)
    sheet = picture[-12 - 58 : -12]  # below the titles, above the margin
    assert black[-12 - 58 : -12, 12:40].sum() == grey[-12 - 58 : -12, 52:80].sum() == 2 * 28 * 28
    assert (sheet[:, :12] == 255).all() and (sheet[:, 40:52] == 255).all()
    assert (picture[: -12 - 58] < 128).any(), "no title to be seen"


def test_points_share_their_axes() -> None:
    near = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    picture = panel([("near", near), ("far", 4 * near)])
    left, right = (np.argwhere((half < 250).any(2)) for half in np.split(picture[40:-20, 14:-14], 2, axis=1))
    extent = [np.ptp(cloud[:, 0]) for cloud in (left, right)]
    assert all(extent) and len(left) < len(right) * 1.5


def test_items_without_a_picture_are_refused() -> None:
    with pytest.raises(UserError, match=r"'waves' has items of shape \(1, 100\)"):
        panel([("waves", torch.zeros(3, 1, 100))])


def test_a_file_is_written_once(tmp_path: Path) -> None:
    picture = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    path = tmp_path / "new" / "picture.png"
    save(picture, path)
    with pytest.raises(UserError, match="exists already"):
        save(255 - picture, path)
    assert np.array_equal(np.asarray(Image.open(path)), picture)
