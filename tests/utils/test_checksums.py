"""The checksum of event files is TensorBoard's own."""

from __future__ import annotations

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as byte_by_byte
from tensorboard.summary.writer import record_writer

from monai_kwtl.utils.tensorboard import masked_crc32c, open_log


@pytest.mark.parametrize("length", [4, 5, 9, 1023, 1024, 1025, 5000, 70_001])
def test_it_is_the_sum_that_tensorboard_finds_byte_by_byte(length, rng):
    data = rng.bytes(length)
    assert masked_crc32c(data) == byte_by_byte(data)
    assert masked_crc32c(bytes(length)) == byte_by_byte(bytes(length))


def test_it_is_the_known_sum_of_nine_digits():
    masked = masked_crc32c(b"123456789")
    turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
    assert ((turned >> 17) | (turned << 15)) & 0xFFFFFFFF == 0xE3069283


def test_logs_are_written_with_it_and_short_records_as_before(tmp_path, rng):
    open_log(tmp_path, "select").close()
    for length in (8, 20_000):
        data = rng.bytes(length)
        assert record_writer.masked_crc32c(data) == byte_by_byte(data)
    assert record_writer.masked_crc32c is not byte_by_byte
