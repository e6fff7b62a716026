"""
The shapes of answers, from the providers' documentation and public models: what is an output in each, what is not.

A row: provider, name, the part that a model writes (`output` of Replicate, `payload` of fal, `data` of Standard
Webhooks, `output` of a response or `data` of the Images API of OpenAI), paths of outputs, paths of mentions.
"""

import base64
from typing import Any, NamedTuple

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
B64 = base64.b64encode(PNG).decode()
SAFE = base64.urlsafe_b64encode(b"\x89PNG\r\n\x1a\n" + b"\xff\xfe\xfb" * 20).decode()
DATA = f"data:image/png;base64,{B64}"
MP4 = base64.b64encode(b"\0\0\0\x20ftypisom" + bytes(60)).decode()
MP3 = base64.b64encode(b"\xff\xfb\x90" + bytes(60)).decode()
FOREIGN = "https://cdn.evil.example/z.png"


class Shape(NamedTuple):
    provider: str
    name: str
    part: Any
    outputs: list[str] = []  # noqa: RUF012 (never changed)
    mentions: list[str] = []  # noqa: RUF012
    problems: list[str] = []  # noqa: RUF012 (the outputs that must not be downloaded)


def f(name: str = "a.png") -> str:
    return f"https://v3.fal.media/files/b/{name}"


def file(name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"url": f(name), "content_type": "image/png", "file_name": name, "file_size": 1824075, **more}


def r(name: str = "a.png") -> str:
    return f"https://replicate.delivery/x/{name}"


def s(name: str = "a.png") -> str:
    return f"https://files.example/{name}"


def o(name: str = "a.png") -> str:
    return f"https://files.example/o/{name}"


def call(result: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": result, **more}


FAL = [
    (
        "image list",
        {"images": [file("a.png", width=1024), file("b.png")], "seed": 196619188014358660},
        ["payload.images[0].url", "payload.images[1].url"],
    ),
    (
        "one image",
        {"image": file(), "timings": {"inference": 1.2}, "has_nsfw_concepts": [False]},
        ["payload.image.url"],
    ),
    ("plain strings", {"images": [f("a"), f("b")]}, ["payload.images[0]", "payload.images[1]"]),
    (
        "strings beside an object",
        {"images": [f("a"), f("b")], "preview": {"url": f("c")}},
        ["payload.images[0]", "payload.images[1]", "payload.preview.url"],
    ),
    (
        "object beside a string",
        {"video": {"url": f("v.mp4")}, "thumbnail": f("t.jpg")},
        ["payload.video.url", "payload.thumbnail"],
    ),
    ("image and mask", {"image": file(), "mask_image": file("m.png")}, ["payload.image.url", "payload.mask_image.url"]),
    ("video", {"video": file("v.mp4"), "seed": 7}, ["payload.video.url"]),
    ("videos", {"videos": [file("1.mp4"), file("2.mp4")]}, ["payload.videos[0].url", "payload.videos[1].url"]),
    (
        "video with frames",
        {"video": file("v.mp4"), "frames": [file("1.png"), file("2.png")]},
        ["payload.video.url", "payload.frames[0].url", "payload.frames[1].url"],
    ),
    ("audio", {"audio": {"url": f("a.mp3"), "duration": 3.2}}, ["payload.audio.url"]),
    ("audio file", {"audio_file": file("a.wav")}, ["payload.audio_file.url"]),
    ("audio url", {"audio_url": f("a.mp3")}, ["payload.audio_url"]),
    (
        "mesh",
        {"model_mesh": file("m.glb"), "rendered_image": file()},
        ["payload.model_mesh.url", "payload.rendered_image.url"],
    ),
    (
        "mesh forms",
        {"model_urls": {"glb": file("m.glb"), "fbx": file("m.fbx"), "usdz": None}},
        ["payload.model_urls.glb.url", "payload.model_urls.fbx.url"],
    ),
    (
        "textures",
        {"model_glb": file("m.glb"), "textures": [{"base_color": file("c.png"), "normal": file("n.png")}]},
        ["payload.model_glb.url", "payload.textures[0].base_color.url", "payload.textures[0].normal.url"],
    ),
    (
        "training",
        {"diffusers_lora_file": file("l.safetensors"), "config_file": file("c.json")},
        ["payload.diffusers_lora_file.url", "payload.config_file.url"],
    ),
    (
        "comfy",
        {"outputs": {"9": {"images": [file(type="output", subfolder="")]}}},
        ['payload.outputs["9"].images[0].url'],
    ),
    ("sync mode", {"images": [{"url": DATA, "width": 8}]}, ["payload.images[0].url"]),
    ("base64 content", {"image": {"content": B64, "content_type": "image/png"}}, ["payload.image.content"]),
    ("base64 key", {"images": [{"b64_json": B64}]}, ["payload.images[0].b64_json"]),
    ("transcript", {"text": "hello", "chunks": [{"timestamp": [0, 1], "text": "hello"}]}, []),
    ("language model", {"output": "A cat. See https://docs.example/cats.", "reasoning": None}, [], ["payload.output"]),
    ("same file twice", {"image": file(), "images": [file()]}, ["payload.image.url"], ["payload.images[0].url"]),
    ("prompt is a url", {"prompt": FOREIGN, "image": file()}, ["payload.image.url"], ["payload.prompt"]),
    (
        "repeated input",
        {"input": {"image_url": f("in.png")}, "image": file()},
        ["payload.image.url"],
        ["payload.input.image_url"],
    ),
    (
        "input prefix",
        {"input_image": file("in.png"), "image": file()},
        ["payload.image.url"],
        ["payload.input_image.url"],
    ),
    (
        "webhook",
        {"image": file(), "webhook_url": "https://us.example/webhooks/fal"},
        ["payload.image.url"],
        ["payload.webhook_url"],
    ),
    (
        "links",
        {"image": file(), "status_url": "https://queue.fal.run/x/status"},
        ["payload.image.url"],
        ["payload.status_url"],
    ),
    (
        "another host",
        {"images": [file(), {"url": FOREIGN}]},
        ["payload.images[0].url", "payload.images[1].url"],
        [],
        ["payload.images[1].url"],
    ),
    ("null", None),
    ("empty", {}),
    ("empty list", {"images": []}),
    ("list of files", [file(), file("b.png")], ["payload[0].url", "payload[1].url"]),
    ("a string", f(), ["payload"]),
    ("whitespace", {"image": {"url": f"\n {f()} "}}, ["payload.image.url"]),
]
REPLICATE = [
    ("a url", r(), ["output"]),
    ("a list", [r("0.webp"), r("1.webp")], ["output[0]", "output[1]"]),
    ("a list of one", [r("0.webp")], ["output[0]"]),
    ("nested lists", [[r("0")], [r("1"), [r("2")]]], ["output[0][0]", "output[1][0]", "output[1][1][0]"]),
    ("named", {"audio": r("a.mp3"), "spectrogram": r("s.jpg")}, ["output.audio", "output.spectrogram"]),
    ("stems", {"vocals": r("v.mp3"), "bass": r("b.mp3"), "guitar": None}, ["output.vocals", "output.bass"]),
    (
        "records",
        [{"file": r("0.png"), "text": "one"}, {"file": r("1.png"), "text": "two"}],
        ["output[0].file", "output[1].file"],
    ),
    ("face swap", {"code": 200, "msg": "succeed", "image": r(), "status": "succeed"}, ["output.image"]),
    (
        "mesh",
        {"mesh": r("m.glb"), "color_video": r("c.mp4"), "gaussian_ply": None, "combined_video": r("d.mp4")},
        ["output.mesh", "output.color_video", "output.combined_video"],
    ),
    ("transcript", {"segments": [{"text": "a"}], "srt_file": r("s.srt"), "language": "en"}, ["output.srt_file"]),
    ("training", {"version": "owner/model:abc", "weights": r("w.tar")}, ["output.weights"]),
    ("data uri", DATA, ["output"]),
    ("data uris", {"images": [DATA, f"data:image/png;base64,{SAFE}"]}, ["output.images[0]", "output.images[1]"]),
    ("base64 text", B64, ["output"]),
    ("base64 in lines", [base64.encodebytes(PNG * 2).decode(), B64], ["output[0]", "output[1]"]),
    ("base64 list", [MP4, B64], ["output[0]", "output[1]"]),
    ("text tokens", ["A", " cat", " on", " https", "://", "a.example", "data:", " x", "http:"]),
    ("text", "a photo of a cat, highly detailed"),
    ("text that begins like a uri", ["data: see below", "data:", "https: the protocol", "// a comment"]),
    ("text with a url", f"Here it is: {r()} (and {FOREIGN}).", [], ["output", "output"]),
    ("markdown", f"![image]({r()})", [], ["output"]),
    ("svg text", '<svg xmlns="http://www.w3.org/2000/svg"></svg>', [], ["output"]),
    ("json text", f'{{"image": "{r()}"}}', ["output.image"]),
    ("json text that is cut", f'{{"image": "{r()}"', [], ["output"]),
    ("null", None),
    ("number", 0.93),
    ("bool", True),
    ("embedding", [0.1, 0.2, -0.3]),
    ("empty list", []),
    ("empty text", ""),
    (
        "same file twice",
        {"image": r(), "images": [r(), r("b")]},
        ["output.image", "output.images[1]"],
        ["output.images[0]"],
    ),
    ("repeated input", {"source": r("in.png"), "result": r()}, ["output.result"], ["output.source"]),
    ("another host", [r(), FOREIGN], ["output[0]", "output[1]"], [], ["output[1]"]),
    ("only another host", FOREIGN, ["output"], [], ["output"]),
    ("plain http", [r(), "http://replicate.delivery/b"], ["output[0]", "output[1]"], [], ["output[1]"]),
    ("bucket", [r(), "gs://bucket/a.png"], ["output[0]", "output[1]"], [], ["output[1]"]),
    ("without scheme", "//replicate.delivery/a.png", ["output"]),
    ("broken data uri", ["data:image/png;base64,a*b", r()], ["output[0]", "output[1]"], [], ["output[0]"]),
    ("a space in the name", "https://replicate.delivery/my file.png", ["output"]),
    ("upper case", "HTTPS://REPLICATE.DELIVERY/A.PNG", ["output"]),
]
STANDARD = [
    ("output", {"output": [s("0"), s("1")]}, ["data.output[0]", "data.output[1]"]),
    ("outputs", {"outputs": [{"url": s()}]}, ["data.outputs[0].url"]),
    (
        "output and thumbnail",
        {"thumbnail": {"url": s("t")}, "output": [s("0")]},
        ["data.thumbnail.url", "data.output[0]"],
    ),
    ("sample", {"result": {"sample": s(), "prompt": "a cat", "seed": 7}}, ["data.result.sample"]),
    (
        "assets",
        {"assets": {"video": s("v.mp4"), "image": s(), "progress_video": None}},
        ["data.assets.video", "data.assets.image"],
    ),
    ("object", {"object": {"images": [{"url": s(), "nsfw": False}]}}, ["data.object.images[0].url"]),
    ("video uri", {"video_uri": s("v.mp4")}, ["data.video_uri"]),
    ("event data", {"event_data": {"video_url": s("v.mp4"), "callback_id": "c"}}, ["data.event_data.video_url"]),
    ("base64 audio", {"full_audio": MP3, "agent_id": "a"}, ["data.full_audio"]),
    (
        "worker images",
        {"output": {"images": [{"filename": "a.png", "type": "base64", "data": B64}]}},
        ["data.output.images[0].data"],
    ),
    (
        "worker urls",
        {"output": {"images": [{"filename": "a.png", "type": "s3_url", "data": s()}]}},
        ["data.output.images[0].data"],
    ),
    ("input repeated", {"input": {"image": s("in")}, "output": s()}, ["data.output"], ["data.input.image"]),
    (
        "links",
        {"urls": {"get": "https://api.example/p/1", "cancel": "https://api.example/p/1/cancel"}, "output": s()},
        ["data.output"],
        ["data.urls.get", "data.urls.cancel"],
    ),
    ("an unsafe image", {"data": [{"url": "", "is_image_safe": False}, {"url": s()}]}, ["data.data[1].url"]),
    ("nothing", {}),
]
RESPONSES = [
    ("one call", [call(B64)], ["output[0].result"]),
    ("unpadded", [call(B64.rstrip("="))], ["output[0].result"]),
    ("url-safe", [call(SAFE)], ["output[0].result"]),
    ("data prefix", [call(DATA)], ["output[0].result"]),
    (
        "two calls and a message",
        [
            {"type": "reasoning", "summary": []},
            call(B64),
            {"type": "message", "content": [{"type": "output_text", "text": "See https://app.example/x"}]},
            call(SAFE),
        ],
        ["output[1].result", "output[3].result"],
        ["output[2].content[0].text"],
    ),
    (
        "citation",
        [call(B64), {"type": "message", "content": [{"annotations": [{"url": FOREIGN}]}]}],
        ["output[0].result"],
        ["output[1].content[0].annotations[0].url"],
    ),
    ("a failed call", [call(None, status="failed"), call(B64)], ["output[1].result"]),
    ("not base64", [call("%%%")], ["output[0].result"], [], ["output[0].result"]),
    ("text only", [{"type": "message", "content": [{"type": "output_text", "text": "no"}]}]),
    ("null", None),
]
IMAGES = [
    ("base64", [{"b64_json": B64}, {"b64_json": SAFE}], ["data[0].b64_json", "data[1].b64_json"]),
    ("unpadded url-safe", [{"b64_json": SAFE.rstrip("=")}], ["data[0].b64_json"]),
    ("data prefix", [{"b64_json": DATA}], ["data[0].b64_json"]),
    ("url", [{"url": o(), "revised_prompt": "a cat"}], ["data[0].url"]),
    ("both", [{"b64_json": B64, "url": o()}], ["data[0].b64_json"], ["data[0].url"]),
    ("broken base64 and a url", [{"b64_json": "a*", "url": o()}], ["data[0].b64_json", "data[0].url"], [],
     ["data[0].b64_json"]),
    ("null beside a url", [{"b64_json": None, "url": o()}, None, 7], ["data[0].url"]),
    ("a url in the revised prompt", [{"b64_json": B64, "revised_prompt": f"as on {FOREIGN}"}], ["data[0].b64_json"],
     ["data[0].revised_prompt"]),
    ("another host", [{"url": FOREIGN}, {"url": o()}], ["data[0].url", "data[1].url"], [], ["data[0].url"]),
    ("empty", []),
]  # fmt: skip
SHAPES = [
    Shape(provider, f"{provider}: {row[0]}", *row[1:])
    for provider, rows in (
        ("fal", FAL), ("replicate", REPLICATE), ("standard", STANDARD), ("responses", RESPONSES), ("images", IMAGES),
    )
    for row in rows
]  # fmt: skip
