"""Where a file belongs in an application's document."""

import pytest

from moorage import scene_documents

MIXED = {"scenes": [{"id": "a", "index": 7}, {"index": 1}, {"title": "third"}, "odd", {"id": 3}, {"title": "sixth"}]}


@pytest.mark.parametrize(
    ("scene", "key"),
    [
        ("a", "id:a"),
        (3, "id:3"),  # an id wins over an index and a position
        ("3", "id:3"),
        (3.0, "id:3"),
        (7, "index:7"),
        (1, "index:1"),  # an index wins over a position
        (2, "position:2"),  # the second of those with neither: "sixth"
        (4, None),
        ("nobody", None),
        (None, None),
    ],
)
def test_a_scene_is_found_by_id_then_index_then_position(scene, key):
    """In this order, each over all scenes."""
    assert scene_documents.find_scene_keys(MIXED, [scene]) == [key]


def test_urls_stand_in_their_scene_and_all_else_is_left():
    """The document is the application's."""
    document = {"title": "t", "scenes": [{"id": "a", "note": [1]}, {"id": "b", "imageUrls": ["stale"]}, None]}

    found = scene_documents.replace_image_urls(document, {"id:a": ["u1", "u2"]})

    expected = [{"id": "a", "note": [1], "imageUrls": ["u1", "u2"]}, {"id": "b", "imageUrls": []}, None]
    assert found == {"title": "t", "scenes": expected}
    assert document["scenes"][1] == {"id": "b", "imageUrls": ["stale"]}


def test_a_file_is_placed_in_one_of_two_scenes_of_the_same_name():
    """Exactly one scene, also when the application repeats itself."""
    found = scene_documents.replace_image_urls({"scenes": [{"id": 1}, {"id": "1"}]}, {"id:1": ["u"]})

    assert [scene.get("imageUrls", []) for scene in found["scenes"]] == [["u"], []]


@pytest.mark.parametrize("document", [{}, {"scenes": None}, {"scenes": {}}, {"scenes": []}, {"scenes": [1, "x", None]}])
def test_a_document_without_scenes_has_no_place(document):
    """And is given back as it was."""
    assert scene_documents.find_scene_keys(document, ["a"]) == [None]
    assert scene_documents.find_scene_keys(document, [1]) == [None]
    assert scene_documents.replace_image_urls(document, {"id:a": ["u"]}) == document


@pytest.mark.parametrize("name", [None, True, "", [], {}])
def test_what_is_no_name_makes_a_scene_nameless(name):
    """It is then found by its position."""
    assert scene_documents.find_scene_keys({"scenes": [{"id": name, "index": name}]}, [1]) == ["position:1"]
