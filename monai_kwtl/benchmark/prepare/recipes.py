"""Sources of the paper's five data sets, and which of their files are images and masks."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["RECIPES", "Checksum", "Part", "Recipe"]

_BROAD = "https://data.broadinstitute.org/bbbc"
_EPFL = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus"
_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Checksum:
    """Hash that a file must have, hexadecimal."""

    algorithm: str
    digest: str


@dataclass(frozen=True)
class Part:
    """A file that the publisher offers: an archive, or a stack.

    Args:
        url: of the file.
        limit: bytes that it may unpack to at most; no honest archive comes near.
        images: matches the paths of images in the archive, with the group ``name``; None where it holds none.
        labels: the same of masks.
        stack: what the pages of a stack are, ``images`` or ``labels``; None for an archive.
        checksum: of the file, where its publisher or several independent users state the same.
    """

    url: str
    limit: int
    images: re.Pattern[str] | None = None
    labels: re.Pattern[str] | None = None
    stack: str | None = None
    checksum: Checksum | None = None


@dataclass(frozen=True)
class Recipe:
    """A data set.

    Args:
        title: what it is.
        citation: what to cite.
        parts: its files, in the order in which ``--source`` takes others instead.
        count: images that the publisher's files make.
        threshold: a mask's pixel is foreground above it; in instance masks 0, since there each value is a cell.
    """

    title: str
    citation: str
    parts: tuple[Part, ...]
    count: int
    threshold: int


def _paths(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)


RECIPES = {
    # images of the other 18 000 names are out of focus and have no mask
    "B5": Recipe(
        "BBBC005v1, simulated fluorescence, nuclei and cell bodies, the images in focus (F1)",
        "Ljosa et al., Nature Methods 9:637 (2012); Lehmussola et al., IEEE TMI 26(7):1010 (2007)",
        (
            Part(
                f"{_BROAD}/BBBC005/BBBC005_v1_images.zip", 16 * _GIB, images=_paths(r"(?P<name>[^/]+_F1_[^/]+)\.tiff?")
            ),
            Part(
                f"{_BROAD}/BBBC005/BBBC005_v1_ground_truth.zip",
                2 * _GIB,
                labels=_paths(r"(?P<name>[^/]+_F1_[^/]+)\.tiff?"),
            ),
        ),
        1200,
        127,
    ),
    "B39": Recipe(
        "BBBC039v1, nuclei of U2OS cells, fluorescence, 16 bit",
        "Caicedo et al., Cytometry A 95(9):952 (2019); Ljosa et al., Nature Methods 9:637 (2012)",
        (
            Part(
                f"{_BROAD}/BBBC039/images.zip",
                2 * _GIB,
                images=_paths(r"images/(?P<name>[^/]+)\.tiff?"),
                checksum=Checksum("sha256", "6f30a5d4fe38c928ded972704f085975f8dc0d65d9aa366df00e5a9d449fddd7"),
            ),
            Part(
                f"{_BROAD}/BBBC039/masks.zip",
                2 * _GIB,
                labels=_paths(r"masks/(?P<name>[^/]+)\.png"),
                checksum=Checksum("sha256", "f9e6043d8ca56344a4886f96a700d804d6ee982f31e2b2cd3194af2a053c2710"),
            ),
        ),
        200,
        0,
    ),
    "TNBC": Recipe(
        "TNBC, nuclei in H&E of 11 patients; a name is patient_field",
        "Naylor et al., IEEE TMI 38(2):448 (2019)",
        (
            Part(
                "https://zenodo.org/records/2579118/files/TNBC_NucleiSegmentation.zip?download=1",
                _GIB,
                images=_paths(r"Slide_\d+/(?P<name>[^/]+)\.png"),
                labels=_paths(r"GT_\d+/(?P<name>[^/]+)\.png"),
                checksum=Checksum("md5", "1605712a752b201b57eacc8f866adb4f"),
            ),
        ),
        50,
        0,
    ),
    # the site packs the repository anew now and then, so that its checksum says nothing
    "ssTEM": Recipe(
        "ssTEM of the ventral nerve cord of a Drosophila larva, stack1, mitochondria",
        "Gerhard et al., figshare (2013), doi:10.6084/m9.figshare.856713",
        (
            Part(
                "https://github.com/unidesigner/groundtruth-drosophila-vnc/archive/refs/heads/master.zip",
                2 * _GIB,
                images=_paths(r"stack1/raw/(?P<name>[^/]+)\.tiff?"),
                labels=_paths(r"stack1/mitochondria/(?P<name>[^/]+)\.png"),
            ),
        ),
        20,
        127,
    ),
    "EM": Recipe(
        "EPFL electron microscopy of a hippocampus, the training stack, mitochondria; a name is the slice",
        "Lucchi, Li, Fua, CVPR (2013)",
        (
            Part(f"{_EPFL}/training.tif", 512 * _MIB, stack="images"),
            Part(f"{_EPFL}/training_groundtruth.tif", 512 * _MIB, stack="labels"),
        ),
        165,
        127,
    ),
}
