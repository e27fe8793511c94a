import numpy as np
import PIL.Image
import pytest

from interp.samples import GALLERY
from kernels.superpixels import superpixels, superpixels_reference


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blocks(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(30, 226, (4, 5, 3))
    fine = np.kron(coarse, np.ones((5, 4, 1), dtype=int))
    return (fine + generator.integers(-20, 21, fine.shape)).astype(np.uint8)


def photo(size: int) -> np.ndarray:
    return np.array(PIL.Image.open(GALLERY / "chelsea.jpg").convert("RGB").resize((size, size)))


@pytest.mark.parametrize("number", [1, 4, 9, 30, 1000])
@pytest.mark.parametrize(
    "picture", [noise(0, 1, 1), noise(1, 1, 9), noise(2, 13, 11), blocks(3), blocks(4), photo(24)], ids=range(6)
)
def test_it_agrees_with_the_reference(picture, number):
    assert np.array_equal(superpixels(picture, number), superpixels_reference(picture, number))


@pytest.mark.parametrize("number", [10, 150])
def test_labels_of_a_photo_count_from_zero_and_each_patch_is_connected(number):
    picture = photo(224)
    labels = superpixels(picture, number)
    count = labels.max() + 1
    assert labels.shape == (224, 224) and set(np.unique(labels)) == set(range(count))
    assert 0.8 * number <= count <= 1.2 * number
    for each in range(count):
        inside = np.pad(labels == each, 1)
        reached = np.zeros_like(inside)
        reached[tuple(np.argwhere(inside)[0])] = True
        size = 0
        while size != reached.sum():
            size = reached.sum()
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            reached = grown & inside
        assert size == inside.sum()
    spread = np.mean([picture[labels == each].std(0).mean() for each in range(count)])
    assert spread < {10: 0.85, 150: 0.5}[number] * picture.std((0, 1)).mean(), "one colour each"


def test_patches_keep_to_a_planted_edge():
    picture = np.zeros((60, 60, 3), dtype=np.uint8)
    y, x = np.mgrid[:60, :60]
    disc = (y - 27) ** 2 + (x - 33) ** 2 < 15**2
    picture[disc], picture[~disc] = (220, 60, 40), (40, 90, 200)
    labels = superpixels(picture, 36)
    crossing = [each for each in np.unique(labels) if 0 < disc[labels == each].mean() < 1]
    assert not crossing


def test_a_flat_picture_is_left_as_a_grid():
    labels = superpixels(np.full((12, 20, 3), 90, dtype=np.uint8), 15)
    assert np.array_equal(labels, np.arange(12)[:, None] // 4 * 5 + np.arange(20) // 4)
