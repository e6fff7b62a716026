"""Keys say which bytes and which attempt an object is from; the orphan sweep reads them back."""

import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import keys

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
RENDER = uuid.UUID("01998a3e-0000-7000-8000-00000000abcd")
TOKEN = uuid.UUID("deadbeef-1111-4222-8333-444455556666")
SHA256 = "0123456789abcdef" + "f" * 48


def test_an_original_names_its_bytes_and_its_attempt():
    """Two attempts, or two contents, must never share a key."""
    assert (
        keys.build_original_key(RENDER, 3, SHA256, TOKEN, "png")
        == "renders/01998a3e-0000-7000-8000-00000000abcd/3-0123456789abcdef-deadbeef.png"
    )


def test_a_thumbnail_key_is_next_to_its_original():
    """A person who looks into the bucket sees which thumbnail belongs to which file."""
    original = keys.build_original_key(RENDER, 3, SHA256, TOKEN, "png")

    thumbnail = keys.build_thumbnail_key(RENDER, 3, SHA256, TOKEN)

    assert thumbnail == original.removesuffix(".png") + "_thumb.webp"


@unhurried
@given(st.uuids(), st.integers(0, 999_999_999), st.uuids(), st.sampled_from(["png", "jpg", "webp", "mp4"]))
def test_every_key_can_be_parsed(render_id, idx, token, extension):
    """The orphan sweep deletes by the parts of a key: it must be able to parse every key."""
    key = keys.build_original_key(render_id, idx, SHA256, token, extension)

    parsed = keys.parse_render_key(key)

    assert parsed == keys.RenderKey(render_id, idx, token.hex[:8])


def test_a_thumbnail_is_read_back_as_one():
    """It is deleted with the attempt that stored it."""
    parsed = keys.parse_render_key(keys.build_thumbnail_key(RENDER, 0, SHA256, TOKEN))

    assert parsed == keys.RenderKey(RENDER, 0, "deadbeef")


def test_a_spooled_input_is_read_back():
    """Input files lie in the private bucket under their upload's id."""
    key = keys.build_input_key(RENDER, "jpg")

    assert key == f"inputs/{RENDER}.jpg"
    assert (keys.is_known_key(key), keys.is_upload_key(key), keys.parse_render_key(key)) == (True, False, None)


@unhurried
@given(st.text(min_size=1, max_size=200).filter(lambda owner: "\x00" not in owner), st.uuids())
def test_an_upload_key_is_parsed_for_any_owner(owner, upload_id):
    """Owners' names come from applications: each is one step of a path, and none looks like a prefix of ours."""
    key = keys.build_upload_key(owner, upload_id, "png")

    assert keys.is_upload_key(key)
    assert key.partition("/")[0] not in {"renders", "inputs", "quarantine", ".", ".."}
    assert len(key) <= 255
    assert not keys.is_known_key(keys.build_quarantine_key(key))


@pytest.mark.parametrize("owner", ["quarantine", "inputs", "renders"])
def test_an_owner_named_as_a_reserved_prefix_yields_no_key_of_another_kind(owner):
    """Else the sweep would empty its folder after a week."""
    key = keys.build_upload_key(owner, RENDER, "png")

    assert not key.startswith(f"{owner}/")
    assert not keys.is_known_key(f"{owner}/inputs/{RENDER}.png")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "moorage-readable.txt",
        "renders/",
        f"renders/{RENDER}/",
        f"renders/{RENDER}/3-0123456789abcdef.png",
        f"renders/{RENDER}/03-0123456789abcdef-deadbeef.png",
        f"renders/{RENDER}/3-0123456789ABCDEF-deadbeef.png",
        f"renders/{RENDER}/3-0123456789abcdef-deadbeef.png\n",
        f"renders/{RENDER}/3-0123456789abcdef-deadbeef.png/x",
        f"a/renders/{RENDER}/3-0123456789abcdef-deadbeef.png",
        f"renders/{RENDER.hex}/3-0123456789abcdef-deadbeef.png",
        f"inputs/{RENDER}",
    ],
)
def test_a_foreign_key_is_not_parsed(key):
    """The orphan sweep must not delete objects of other applications."""
    assert not keys.is_known_key(key)
