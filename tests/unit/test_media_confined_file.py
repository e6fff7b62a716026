"""A decoder process shares the offset of the file it reads; the file must be readable from any offset afterwards."""

import tempfile

from media import confined, decoder_process


def test_a_file_is_read_and_stored_whole_after_a_decoder_read_it(tmp_path, monkeypatch):
    """The buffer of the file does not know that the offset moved: `tell` was negative, and the upload failed."""
    program = tmp_path / "reader.py"
    program.write_text("import sys\nsys.stdin.buffer.seek(0)\nsys.stdin.buffer.read()\nsys.stdin.buffer.seek(0)\n")
    monkeypatch.setattr(decoder_process, "__file__", str(program))
    data = bytes(range(256)) * 1000
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        file.read(10)

        confined._run_program({}, file, 120, None)
        file.seek(0)

        assert file.tell() == 0
        assert file.read() == data
