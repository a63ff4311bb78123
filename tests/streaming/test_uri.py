"""What a user types, what is opened, and what is shown of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitedge.errors import StreamError, UsageError, VitedgeError
from vitedge.streaming.address import Credentials, redact
from vitedge.streaming.uri import parse_source, parse_sources, read_credentials


@pytest.mark.parametrize(
    ("text", "kind", "live", "name", "target"),
    [
        ("0", "camera", True, "video0", "/dev/video0"),
        ("/dev/video2", "camera", True, "video2", "/dev/video2"),
        ("/dev/v4l/by-id/usb-Cam-index0", "camera", True, "usb-Cam-index0", "/dev/v4l/by-id/usb-Cam-index0"),
        ("v4l2:///dev/video1", "camera", True, "video1", "/dev/video1"),
        ("csi://1", "csi", True, "csi1", "1"),
        ("rtsp://10.0.0.5/main", "network", True, "10.0.0.5/main", "rtsp://10.0.0.5/main"),
        ("RTSP://10.0.0.5:8554/", "network", True, "10.0.0.5:8554", "rtsp://10.0.0.5:8554/"),
        ("http://cam/video.mjpg", "network", True, "cam/video.mjpg", "http://cam/video.mjpg"),
        ("https://host/film.mp4?x=1", "network", False, "host/film.mp4", "https://host/film.mp4?x=1"),
        ("rtp://@:1234", "network", True, "0.0.0.0:1234", "rtp://0.0.0.0:1234"),
        ("rtsp://[fe80::1]:554/a", "network", True, "[fe80::1]:554/a", "rtsp://[fe80::1]:554/a"),
        ("gate=rtsp://10.0.0.5/main", "network", True, "gate", "rtsp://10.0.0.5/main"),
        ("door=0", "camera", True, "door", "/dev/video0"),
        ("test://?rate=5", "test", True, "test", "?rate=5"),
        ("test://?live=0&frames=3", "test", False, "test", "?live=0&frames=3"),
    ],
)
def test_the_grammar(text: str, kind: str, live: bool, name: str, target: str) -> None:
    source = parse_source(text)
    assert (source.kind, source.live, source.name, source.targets) == (kind, live, name, (target,))


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.mp4").write_bytes(b"x")
    assert parse_source(str(tmp_path)).targets == tuple(str(tmp_path / f"{n}.png") for n in range(3))
    assert parse_source(str(tmp_path / "*.png")).kind == "pictures"
    videos = parse_source(f"{tmp_path}/*.mp4")
    assert videos.kind == "videos" and len(videos.targets) == 3 and not videos.live
    assert parse_source(f"file://{tmp_path}/1.mp4").targets == (f"{tmp_path}/1.mp4",)
    odd = tmp_path / "a=b.mp4"
    odd.write_bytes(b"x")
    assert parse_source(str(odd)).name == "a=b.mp4"  # a file's name before a name for a source


@pytest.mark.parametrize("text", ["rtps://cam/", "csi://front", "test://?speed=3", "test://?rate=x", "http://host:x/"])
def test_what_is_misspelt_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


@pytest.mark.parametrize("text", ["nowhere.mp4", "nowhere/*.png"])
def test_what_is_not_there_is_a_stream_error(text: str) -> None:
    with pytest.raises(StreamError):
        parse_source(text)


def test_sources_get_names_of_their_own() -> None:
    names = [source.name for source in parse_sources(["test://", "test://", "test=test://", "0"])]
    assert names == ["test", "test-2", "test-3", "video0"]
    with pytest.raises(UsageError):
        parse_sources([])


PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/?#@\x7f"), min_size=4)


@settings(max_examples=60, deadline=None)
@given(
    user=PLAIN.map(lambda text: text.replace(":", "")),
    password=PLAIN.map("§{}".format),
    scheme=st.sampled_from(["rtsp", "http"]),
)
def test_a_password_in_a_url_is_taken_out(user: str, password: str, scheme: str) -> None:
    quoted = password.replace("%", "%25")
    source = parse_source(f"{scheme}://{user.replace('%', '%25')}:{quoted}@zz:80/xy")
    assert source.credentials == Credentials(user, password)
    for text in (source.uri, source.name, repr(source), str(source), repr(source.credentials), source.targets[0]):
        assert password not in text
    url = source.credentials.in_url(source.targets[0])
    assert parse_source(url).credentials == source.credentials  # what the reader opens is what was meant
    assert password not in redact(f"cannot open {url}: no", source.credentials.secrets)


def test_an_unescaped_slash_is_explained_without_the_password() -> None:
    with pytest.raises(UsageError) as refused:
        parse_source("rtsp://camera:se/cret@10.0.0.5/main")
    assert "cret" not in str(refused.value) and "--credentials" in str(refused.value)


def test_values_of_a_query_are_not_shown() -> None:
    source = parse_source("http://cam/video.cgi?user=a&pwd=hush&quality")
    assert source.uri == "http://cam/video.cgi?user=…&pwd=…&quality"
    assert "hush" in source.targets[0] and "hush" not in source.name + repr(source)
    path = parse_source("rtsp://10.0.0.5:554/user=admin&password=hush&channel=1.sdp")
    assert path.uri == "rtsp://10.0.0.5:554/user=admin&password=…&channel=1.sdp" and "hush" not in path.name


def test_credentials_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text("# the gate\ncamera:a:b c\n")
    assert read_credentials(str(file)) == {"": Credentials("camera", "a:b c")}
    file.write_text("machine 10.0.0.5 login one password two\ndefault login three password four\n")
    sources = parse_sources(["rtsp://10.0.0.5/", "rtsp://10.0.0.6/", "rtsp://own:word@10.0.0.5/", "test://"], str(file))
    assert [source.credentials and source.credentials.user for source in sources] == ["one", "three", "own", None]
    monkeypatch.setenv("CAMERA", "u:p")
    assert read_credentials("env:CAMERA") == {"": Credentials("u", "p")}


@pytest.mark.parametrize("content", ["hush", "machine login hush", "hush one\nhush two", ""])
def test_credentials_that_cannot_be_read_are_not_shown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(content)
    with pytest.raises(UsageError) as refused:
        read_credentials(str(file))
    assert "hush" not in str(refused.value)
    with pytest.raises(UsageError):
        read_credentials(str(tmp_path / "none"))
    with pytest.raises(UsageError):
        read_credentials("env:VITEDGE_NO_SUCH_VARIABLE")


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(VitedgeError):
        parse_source(text)
