"""Files of all kinds give the pixels that Pillow, tifffile, nibabel and numpy say are in them; broken ones a reason."""

from __future__ import annotations

import gzip
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from monai_kwtl.readers.decoding import UnreadableError, quiet, turn
from monai_kwtl.readers.image_files import has_suffix, open_image, read_pixels

HEIGHT, WIDTH = 20, 51


def values(rng, dtype, *shape):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape or (HEIGHT, WIDTH)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape or (HEIGHT, WIDTH), dtype=dtype, endpoint=True)


def same(found, expected):
    return found.shape == expected.shape and found.dtype == expected.dtype and np.array_equal(found, expected)


# --- PNG, JPEG, BMP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "PNG", "tif"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_8_bit_pixels_are_those_that_were_saved(tmp_path, rng, suffix, channels):
    pixels = values(rng, "u1", HEIGHT, WIDTH, *channels)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert same(read_pixels(tmp_path / f"a.{suffix}"), pixels)


def test_jpeg_is_decoded_as_pillow_does(tmp_path, rng):
    Image.fromarray(values(rng, "u1", HEIGHT, WIDTH, 3)).save(tmp_path / "a.jpeg")
    with Image.open(tmp_path / "a.jpeg") as image:
        assert same(read_pixels(tmp_path / "a.jpeg"), np.asarray(image))


def test_16_bit_png_keeps_its_values(tmp_path, rng):
    pixels = values(rng, "u2")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_pixels(tmp_path / "a.png")
    assert found.dtype.itemsize >= 2 and np.array_equal(found, pixels)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_png_keeps_its_values_and_drops_alpha(tmp_path, rng, channels):
    pixels = values(rng, "u2", HEIGHT, WIDTH, channels)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    assert same(read_pixels(tmp_path / "a.png"), pixels[..., 0] if channels == 2 else pixels[..., :3])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit_becomes_0_and_255(tmp_path, rng, suffix):
    bits = rng.random((HEIGHT, WIDTH)) < 0.5
    Image.fromarray(bits).save(tmp_path / f"a.{suffix}")
    assert same(read_pixels(tmp_path / f"a.{suffix}"), bits.astype(np.uint8) * 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_the_colours_they_stand_for(tmp_path, rng, suffix, transparent):
    indices = rng.integers(0, 7, (HEIGHT, WIDTH)).astype(np.uint8)
    colours = values(rng, "u1", 7, 3)
    image = Image.fromarray(indices)
    image.putpalette(colours.ravel().tolist())
    more = {"transparency": bytes(range(7))} if transparent and suffix == "png" else {}
    image.save(tmp_path / f"a.{suffix}", **more)
    assert same(read_pixels(tmp_path / f"a.{suffix}"), colours[indices])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(tmp_path, rng, suffix, mode):
    pixels = values(rng, "u1", HEIGHT, WIDTH, len(mode))
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert same(read_pixels(tmp_path / f"a.{suffix}"), pixels[..., :3] if mode == "RGBA" else pixels[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_viewers_do(tmp_path, rng, orientation):
    pixels = values(rng, "u1", HEIGHT, WIDTH, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, extratags=[(274, "H", 1, orientation, True)]
    )
    for name in ("a.png", "a.jpg", "a.tif"):
        with Image.open(tmp_path / ("a.png" if name == "a.tif" else name)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert same(read_pixels(tmp_path / name), expected)
        with open_image(tmp_path / name) as file:
            assert file.sizes() == [(None, *expected.shape[:2])]
    assert same(np.ascontiguousarray(turn(pixels, orientation)), read_pixels(tmp_path / "a.png"))


# --- TIFF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i2", "u4", "i4", "f2", "f4", "f8", ">f4"])
def test_tiff_keeps_every_pixel_type(tmp_path, rng, dtype):
    pixels = values(rng, np.dtype(dtype).newbyteorder("="))
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=">" if dtype[0] == ">" else "<")
    assert same(read_pixels(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_colour_of_every_depth_and_layout(tmp_path, rng, dtype, planar, channels):
    pixels = values(rng, dtype, HEIGHT, WIDTH, channels)
    more = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.moveaxis(pixels, -1, 0) if planar else pixels,
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
        **more,
    )
    assert same(read_pixels(tmp_path / "a.tif"), pixels[..., :3])


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw", "rowsperstrip": 7},
        {"compression": "zstd"},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"ome": True},
        {"imagej": True},
    ],
    ids=str,
)
def test_tiff_layouts_do_not_matter(tmp_path, rng, layout):
    pixels = values(rng, "u2")
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, **layout)
    assert same(read_pixels(tmp_path / "a.ome.tif"), pixels)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_white_is_zero_is_inverted(tmp_path, rng, dtype):
    pixels = values(rng, dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert same(read_pixels(tmp_path / "a.tif"), ~pixels)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_are_converted_as_pillow_does(tmp_path, rng, mode):
    image = Image.fromarray(values(rng, "u1", HEIGHT, WIDTH, 3)).convert(mode)
    image.save(tmp_path / "a.tif")
    assert same(read_pixels(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["minisblack", "ome", "imagej", "palette"])
def test_pages_come_singly(tmp_path, rng, kind):
    if kind == "palette":
        pages = [values(rng, "u1") for _ in range(3)]
        images = [Image.fromarray(page).convert("P") for page in pages]
        images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
        pages = [np.repeat(page[..., None], 3, axis=2) for page in pages]
    else:
        pages = values(rng, "u2", 3, HEIGHT, WIDTH)
        more = {"photometric": "minisblack"} if kind == "minisblack" else {kind: True}
        tifffile.imwrite(tmp_path / "a.tif", pages, **more)
    with open_image(tmp_path / "a.tif") as file:
        assert file.sizes() == [(page, HEIGHT, WIDTH) for page in range(3)]
        assert np.array_equal(file.read(1), pages[1])
    assert all(same(read_pixels(tmp_path / "a.tif", page), pages[page]) for page in (2, 0, 1))
    with pytest.raises(UnreadableError, match="no page 3"):
        read_pixels(tmp_path / "a.tif", 3)
    with pytest.raises(UnreadableError, match="holds 3 images"):
        read_pixels(tmp_path / "a.tif")


def test_one_page_is_read_without_the_others(tmp_path, rng, monkeypatch):
    pages = values(rng, "u2", 50, HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", compression="zlib")
    read, asarray = [], tifffile.TiffPage.asarray
    monkeypatch.setattr(
        tifffile.TiffPage, "asarray", lambda self, *a, **k: (read.append(self.index), asarray(self, *a, **k))[1]
    )
    assert np.array_equal(read_pixels(tmp_path / "a.tif", 7), pages[7])
    assert read == [7]


@pytest.mark.parametrize("kind", ["imagej", "shaped"])
def test_stacks_behind_a_single_page_header_are_found(tmp_path, rng, kind):
    pages = values(rng, "u2", 4, HEIGHT, WIDTH)
    more = {"imagej": True} if kind == "imagej" else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", pages, truncate=True, **more)
    with open_image(tmp_path / "a.tif") as file:
        assert file.sizes() == [(page, HEIGHT, WIDTH) for page in range(4)]
    assert all(same(read_pixels(tmp_path / "a.tif", page), pages[page]) for page in range(4))
    with pytest.raises(UnreadableError, match="no page 4"):
        read_pixels(tmp_path / "a.tif", 4)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: whole.rindex(pages[3].tobytes()[-8:]) - 100])
    with pytest.raises(UnreadableError, match="truncated"), open_image(tmp_path / "a.tif") as file:
        file.sizes()


def test_pages_may_differ_in_size_and_thumbnails_are_none(tmp_path, rng):
    first, second = values(rng, "u2"), values(rng, "u1", 9, 33)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(first)
        tiff.write(second)
        tiff.write(first[::2, ::2], subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(first)
        tiff.write(first[::2, ::2], subfiletype=1)
    with open_image(tmp_path / "a.tif") as file:
        assert file.sizes() == [(0, HEIGHT, WIDTH), (1, 9, 33)]
    with open_image(tmp_path / "b.tif") as file:
        assert file.sizes() == [(None, HEIGHT, WIDTH)]
    assert same(read_pixels(tmp_path / "a.tif", 1), second)
    assert same(read_pixels(tmp_path / "b.tif"), first)


@pytest.mark.parametrize(
    ("shape", "dtype", "more", "words"),
    [
        ((HEIGHT, WIDTH, 5), "u1", {"photometric": "minisblack", "planarconfig": "contig"}, "5 channels"),
        ((HEIGHT, WIDTH, 2), "u2", {"photometric": "minisblack", "planarconfig": "contig"}, "2 channels"),
        ((HEIGHT, WIDTH), "f4", {"photometric": "miniswhite"}, "inverted"),
        ((3, HEIGHT, WIDTH), "u1", {"photometric": "minisblack", "volumetric": True}, "axes ZYX"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_tiffs_of_unclear_meaning_are_refused(tmp_path, rng, shape, dtype, more, words):
    tifffile.imwrite(tmp_path / "a.tif", values(rng, dtype, *shape), metadata=None, **more)
    with pytest.raises(UnreadableError, match=words):
        read_pixels(tmp_path / "a.tif")


def test_complex_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((HEIGHT, WIDTH), dtype=np.complex64))
    with pytest.raises(UnreadableError, match="complex64"):
        read_pixels(tmp_path / "a.tif")


# --- NIfTI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_nifti_columns_are_its_first_axis(tmp_path, rng, suffix, dtype):
    array = values(rng, dtype, WIDTH, HEIGHT, 3)
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, -1, 2, 1])), path)
    with open_image(path) as file:
        assert file.sizes() == [(z, HEIGHT, WIDTH) for z in range(3)]
        assert np.array_equal(file.read(2), array[:, :, 2].T)
    for z in (1, 0):
        assert same(read_pixels(path, z), np.ascontiguousarray(array[:, :, z].T))
    with pytest.raises(UnreadableError, match="no slice 3"):
        read_pixels(path, 3)
    with pytest.raises(UnreadableError, match="holds 3 slices"):
        read_pixels(path)


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT), (WIDTH, HEIGHT, 1), (WIDTH, HEIGHT, 1, 1)])
def test_flat_nifti_is_one_image(tmp_path, rng, shape):
    array = values(rng, "u1", *shape)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with open_image(tmp_path / "a.nii") as file:
        assert file.sizes() == [(None, HEIGHT, WIDTH)]
    assert same(read_pixels(tmp_path / "a.nii"), np.ascontiguousarray(array.reshape(WIDTH, HEIGHT).T))


def test_nifti_scaling_factors_are_applied(tmp_path, rng):
    image = nibabel.Nifti1Image(rng.normal(size=(WIDTH, HEIGHT)), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.allclose(read_pixels(tmp_path / "a.nii"), image.get_fdata().T, atol=1e-3)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 4, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "coloured voxels"),
        (np.zeros((5, 4), dtype=np.complex64), "complex voxels"),
        (np.zeros((5, 4, 2, 3), dtype=np.uint8), "4 dimensions"),
        (np.zeros(5, dtype=np.uint8), "1 dimensions"),
    ],
    ids=["colour", "complex", "4-D", "1-D"],
)
def test_niftis_that_are_no_grey_images_are_refused(tmp_path, array, words):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableError, match=words):
        read_pixels(tmp_path / "a.nii.gz")


# --- broken files -----------------------------------------------------------------------------------------------------


def write_every_kind(folder, rng):
    grey, colour = values(rng, "u1"), values(rng, "u1", HEIGHT, WIDTH, 3)
    deep = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint16) * 300
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "deep colour.png").write_bytes(imagecodecs.png_encode(colour.astype(np.uint16)))
    Image.fromarray(colour).save(folder / "a.jpg")
    Image.fromarray(colour).save(folder / "a.bmp")
    Image.fromarray(grey > 99).save(folder / "bits.tif", compression="group4")
    Image.fromarray(colour).convert("P").save(folder / "palette.tif")
    tifffile.imwrite(folder / "plain.tif", deep)
    tifffile.imwrite(folder / "tiles.tif", deep, tile=(16, 16))
    tifffile.imwrite(folder / "jpeg.tif", grey, compression="jpeg", rowsperstrip=8)
    tifffile.imwrite(folder / "lzw.tif", deep, compression="lzw", rowsperstrip=3)
    with tifffile.TiffWriter(folder / "stack.tif") as tiff:
        for page in (deep, deep + 1):
            tiff.write(page, contiguous=False, compression="zlib")
    nibabel.save(nibabel.Nifti1Image(deep.T.copy(), np.eye(4)), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.stack([deep.T, deep.T + 1], 2), np.eye(4)), folder / "a.nii.gz")
    return sorted(folder.iterdir())


def all_pages(path):
    with open_image(path) as file:
        return [np.array(file.read(page)) for page, _, _ in file.sizes()]


def test_a_file_cut_off_anywhere_is_found_out_or_loses_nothing(tmp_path, rng, capfd):
    for path in write_every_kind(tmp_path, rng):
        whole, pages = path.read_bytes(), all_pages(path)
        lengths = {*range(0, 40, 3), *np.linspace(40, len(whole), 30, dtype=int), *range(len(whole) - 8, len(whole))}
        lost = 0
        for length in sorted(lengths):
            cut = path.with_name(f"cut {path.name}")
            cut.write_bytes(whole[:length])
            try:
                found = all_pages(cut)
            except UnreadableError as error:
                lost += 1
                assert len(str(error)) < 120 and "\n" not in str(error)
            else:
                assert len(found) == len(pages) and all(map(np.array_equal, found, pages)), (path.name, length)
        assert lost > len(lengths) / 2, path.name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "nii", "nii.gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"These are my notes on the images, not an image.\n" * 20, "no image"),
        (bytes(500), "no image"),
        (b"II*\0\xff\xff\xff\x00", "no image"),
    ],
    ids=["empty", "text", "zeros", "tiff without pages"],
)
def test_what_is_no_image_gets_a_reason(tmp_path, suffix, content, words, capfd):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(UnreadableError, match=words), open_image(tmp_path / f"a.{suffix}") as file:
        file.sizes()
    assert capfd.readouterr() == ("", "")


def test_missing_files_and_folders_get_a_reason(tmp_path):
    (tmp_path / "b.png").mkdir()
    for name, words in (("a.png", "No such file"), ("b.png", "Is a directory")):
        with pytest.raises(UnreadableError, match=words):
            read_pixels(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["tif", "nii"])
def test_nan_and_infinity_are_unreadable(tmp_path, rng, bad, kind):
    pixels = values(rng, "f4")
    pixels[3, 4] = bad
    if kind == "tif":
        tifffile.imwrite(tmp_path / "a.tif", pixels)
    else:
        nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UnreadableError, match="NaN or infinite"):
        read_pixels(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "nii", "nii.gz"])
def test_one_pixel_is_an_image(tmp_path, kind):
    pixel = np.full((1, 1), 77, dtype=np.uint8)
    if kind.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(pixel, np.eye(4)), tmp_path / f"a.{kind}")
    else:
        Image.fromarray(pixel).save(tmp_path / f"a.{kind}")
    assert same(read_pixels(tmp_path / f"a.{kind}"), pixel)


def test_single_images_have_no_pages(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableError, match="holds one image, page 1"):
        read_pixels(tmp_path / "a.png", 1)


def test_content_counts_more_than_the_suffix(tmp_path, rng):
    pixels = values(rng, "u1")
    Image.fromarray(pixels).save(tmp_path / "a.tif", format="PNG")
    tifffile.imwrite(tmp_path / "b.png", pixels.astype(np.uint16))
    assert same(read_pixels(tmp_path / "a.tif"), pixels)
    assert same(read_pixels(tmp_path / "b.png"), pixels.astype(np.uint16))
    Image.fromarray(pixels).save(tmp_path / "c.png", format="GIF")
    with pytest.raises(UnreadableError, match="no image"):
        read_pixels(tmp_path / "c.png")


def test_pictures_beyond_pillows_limit_say_what_to_do(tmp_path, monkeypatch):
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="save it as TIFF"):
        read_pixels(tmp_path / "a.png")


def test_a_gzip_that_is_no_nifti_is_no_image(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"nothing of the kind" * 50))
    with pytest.raises(UnreadableError, match="no image"):
        read_pixels(tmp_path / "a.nii.gz")


# --- silence ----------------------------------------------------------------------------------------------------------


def test_decoders_are_quiet_only_while_we_read(caplog):
    with quiet:
        logging.getLogger("tifffile").error("unheard")
        warnings.warn("unheard", UserWarning, stacklevel=1)
    logging.getLogger("tifffile").warning("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path, rng):
    paths = write_every_kind(tmp_path, rng)
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(all_pages, paths * 3))
    assert warnings.filters == before
    assert all(map(np.array_equal, found[0], found[len(paths)]))


def test_suffixes_are_known_in_any_case():
    assert has_suffix("A.TIFF", (".tif", ".tiff")) and not has_suffix("tif", (".tif",))
