"""`tokensieve ask --video`: frames of files and folders, what is printed, drawn and refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from tokensieve.data.sources.clips import Video, open_video
from tokensieve.errors import ConfigError, MissingPackageError, PictureError, UnsupportedError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.prepare import check_takes_videos, prepared
from toys.extract_tiny import noise
from toys.llava_tiny import tiny_model, tiny_processor
from toys.real_processors import MAKERS
from toys.videos import PatchVideos, clip, pictures

QUESTION = "w20 w21"
TEMPLATE = (
    "{% for c in messages[0]['content'] %}{{ c['text'] if c['type'] == 'text' else "
    "'<begin> <' + c['type'] + '> <end>' }} {% endfor %}"
)
TOKENS = 8  # of a pair of frames


@pytest.fixture
def qwen(monkeypatch):
    """A tiny Qwen that takes videos."""
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    loaded = MAKERS["qwen"]()
    loaded.processor.video_processor = PatchVideos()
    loaded.processor.chat_template = TEMPLATE
    monkeypatch.setattr("tokensieve.hf.load.load_model", lambda *_: loaded)
    return loaded


@pytest.fixture
def told(run, qwen):
    """Ask it; the JSON object printed."""

    def asking(*options):
        code, out, err = run(
            "ask", *options, QUESTION, "--json", "--max-new-tokens", 2, "--keep", 0.5
        )
        assert (code, err) == (0, "")
        return json.loads(out)

    return asking


def test_frames_of_a_file_are_asked_about(told, tmp_path):
    film = clip(tmp_path / "clip.gif")
    got = told("--video", film, "--method", "stride")
    assert got["video"] == str(film)
    assert "pictures" not in got
    assert (got["visual_tokens"], got["kept_tokens"]) == (3 * TOKENS, 3 * TOKENS // 2)
    # six frames in three seconds: four of them, or one a second
    assert told("--video", film, "--frames", 4, "--method", "full")["visual_tokens"] == 2 * TOKENS
    assert told("--video", film, "--fps", 1, "--method", "full")["visual_tokens"] == 2 * TOKENS


def test_pictures_and_videos_together_by_several_methods(told, picture, tmp_path):
    films = [clip(tmp_path / "a.gif"), clip(tmp_path / "b.gif", 2)]
    options = [part for film in films for part in ("--video", film)]
    got = told(picture, *options, "--method", "evs", "--compare", "full,random,none")
    assert got["picture"] == str(picture)
    assert got["videos"] == [str(film) for film in films]
    full, random, none = got["compare"]
    assert full["kept_tokens"] > 4 * TOKENS
    assert random["kept_tokens"] < full["kept_tokens"]
    assert none["kept_tokens"] == 0


def test_the_answer_is_that_of_the_model_with_all_tokens(qwen):
    frames = Video(pictures(4), [0.0, 0.5, 1.0, 1.5])
    inputs = prepared(qwen, frames, QUESTION)
    ids = qwen.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    alone = qwen.processor.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()
    settings = Settings(keep=1.0, max_new_tokens=3)
    assert ask(qwen, frames, QUESTION, "stride", settings).answer == alone
    assert ask(qwen, [frames], QUESTION, "full", settings).answer == alone
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(1.0)  # pairs, two a second
    first = ask(qwen, frames, QUESTION, "full", Settings(max_new_tokens=1, ask_first=True))
    assert first.prompt_tokens == inputs["input_ids"].shape[1] + 2  # the question once more


def test_budgets_over_frames(qwen):
    video = Video(pictures(6))
    for frames, even in {"together": False, "each": True, None: True}.items():
        settings = Settings(keep=0.25, max_new_tokens=1, frames=frames)
        (report,) = ask(qwen, video, QUESTION, "divprune", settings).images
        counts = [len(crop.kept) for crop in report.crops]
        assert sum(counts) == 6
        assert (counts == [2, 2, 2]) == even


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_overlays(told, picture, tmp_path, suffix, moves):
    film, target = clip(tmp_path / "clip.gif", 6 if moves else 2), tmp_path / f"kept{suffix}"
    told(picture, "--video", film, "--method", "stride", "--compare", "full", "--overlay", target)
    moving = moves and suffix != ".png"
    with Image.open(target) as page:
        assert getattr(page, "n_frames", 1) == (3 if moving else 1)
        if moving:
            seen = []
            for t in range(3):
                page.seek(t)
                seen.append(page.convert("RGB").tobytes())
            assert len(set(seen)) == 3


def test_the_contact_sheet_dims_what_was_dropped(qwen, tmp_path):
    from tokensieve.evaluate.overlay import check_overlay, shown
    from tokensieve.viz.compare import contact_rows, frame_columns

    white = Video([Image.new("RGB", (32, 16), "white")] * 4, [0, 1, 2, 3])
    check_overlay(qwen, white, QUESTION)
    answer = ask(qwen, white, QUESTION, "stride", Settings(keep=0.5, max_new_tokens=1))
    columns = frame_columns(qwen.processor, white.frames, white.seconds, [shown(answer)])
    assert [column[0].title for column in columns] == ["frame 1", "frame 3"]
    assert [column[1].lines for column in columns] == [("4 of 8 here",)] * 2
    for column, crop in zip(columns, answer.images[0].crops, strict=True):
        picture = column[1].picture
        side = picture.width // 4, picture.height // 2
        for token in range(8):
            at = (token % 4 * side[0] + side[0] // 2, token // 4 * side[1] + side[1] // 2)
            assert (picture.getpixel(at) == (255, 255, 255)) == (token in crop.kept.tolist())
    rows = contact_rows(columns, [shown(answer)])
    assert [len(row) for row in rows] == [2, 2]
    assert any(line.startswith("Answer") for line in rows[1][0].lines)
    assert not any(line.startswith("Answer") for line in rows[1][1].lines)


def test_a_folder_of_frames(tmp_path):
    for i, frame in enumerate(pictures(5)):
        frame.save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("none")
    video = open_video(tmp_path, frames=2, fps=2)
    assert list(video.seconds) == [0.5, 1.5]
    assert [f.tobytes() for f in video.frames] == [pictures(4)[i].tobytes() for i in (1, 3)]
    assert video.fps == 1.0
    assert len(open_video(tmp_path, frames=9).frames) == 5


def test_an_overlay_does_not_become_a_frame(run, qwen, tmp_path):
    for i, frame in enumerate(pictures(2)):
        frame.save(tmp_path / f"{i}.png")
    before = (tmp_path / "1.png").read_bytes()
    for name in ("1.png", "new.png"):
        asked = ("ask", "--video", tmp_path, QUESTION, "--overlay", tmp_path / name)
        code, _, err = run(*asked, "--method", "stride", "--max-new-tokens", 1)
        assert code == 2
        assert "Expected an overlay outside" in err
    assert (tmp_path / "1.png").read_bytes() == before
    assert not (tmp_path / "new.png").exists()


def test_times_of_a_file(tmp_path):
    film = clip(tmp_path / "clip.gif", 6)
    assert list(open_video(film, 3).seconds) == [0.5, 1.5, 2.5]
    assert len(open_video(film, 99).frames) == 6
    assert len(open_video(film, 8, fps=0.1).frames) == 1


def test_times_of_a_gif_whose_frames_stay_unequally_long(tmp_path):
    grey = [Image.new("RGB", (8, 8), (40 * i,) * 3) for i in range(4)]
    grey[0].save(tmp_path / "a.gif", save_all=True, append_images=grey[1:],
                 duration=[100, 2000, 300, 600])  # fmt: skip
    assert open_video(tmp_path / "a.gif", 9).seconds == pytest.approx([0.0, 0.1, 2.1, 2.4])
    assert len(open_video(tmp_path / "a.gif", 9, fps=1).frames) == 3  # of its three seconds


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_file_through_pyav(tmp_path, suffix):
    av = pytest.importorskip("av")
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        codec = "mpeg4" if suffix == ".mp4" else "libvpx-vp9"
        stream = container.add_stream(codec, rate=4, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for level in range(16):
            frame = Image.new("RGB", (32, 16), (16 * level,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    video = open_video(path, frames=8, fps=1)
    assert len(video.frames) == 4
    assert list(video.seconds) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.1)
    levels = [frame.getpixel((8, 8))[0] for frame in video.frames]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 150
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PictureError, match="Expected a whole video in"):
        open_video(broken)


def test_what_is_no_video_is_refused_with_what_to_do(run, tmp_path, picture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.gif").touch()
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    for name, said in {
        tmp_path / "gone.mp4": "Expected a video file at",
        "https://example.org/a.mp4": "Download it first",
        tmp_path / "empty": "holds no pictures",
        tmp_path / "nothing.gif": "Got an empty file",
        tmp_path / "broken.gif": "broken.gif",
    }.items():
        code, out, err = run("ask", QUESTION, "--video", name)
        assert (code, out) == (2, "")
        assert err.startswith("tokensieve: Expected")
        assert err.count("\n") == 1
        assert said in err
    code, out, err = run("ask", "a.png", "--keep", 0.5)
    assert (code, out) == (2, "")
    assert "Expected IMAGE... QUESTION, or QUESTION --video FILE. Got one text, 'a.png'" in err


def test_frames_that_make_no_video():
    for frames, said in {(): "Got no frame", ("a.png",): "Got 'a.png'"}.items():
        with pytest.raises(PictureError, match=said):
            Video(list(frames))
    with pytest.raises(PictureError, match="frames of one size"):
        Video([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])
    for seconds in ([0.0], [1.0, 1.0], [-1.0, 2.0], [0.0, float("inf")]):
        with pytest.raises(ConfigError, match="Expected 2 rising `seconds`"):
            Video(pictures(2), seconds)
    for wrong in ({"frames": 0}, {"fps": 0.0}, {"fps": float("nan")}):
        with pytest.raises(ConfigError, match="at least one frame, and an fps above 0"):
            open_video("clip.gif", **wrong)


def test_a_model_without_videos_says_so(run, model_dir, tmp_path):
    film = clip(tmp_path / "clip.gif")
    code, out, err = run("ask", QUESTION, "--video", film, "--model", model_dir)
    assert (code, out) == (2, "")
    assert "(llava), which takes none. Ask about its frames as pictures" in err


def test_a_processor_without_torchvision_says_so(qwen, monkeypatch):
    qwen.processor.video_processor = None
    monkeypatch.setattr("tokensieve.evaluate.prepare.is_torchvision_available", lambda: False)
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        check_takes_videos(qwen)
    plain = SimpleNamespace(name="tiny", model=tiny_model(), processor=tiny_processor())
    with pytest.raises(UnsupportedError, match="Expected a model that takes videos"):
        check_takes_videos(plain)


def test_a_template_that_leaves_videos_out_is_refused(qwen):
    qwen.processor.chat_template = TEMPLATE.replace("c['type'] == 'text'", "'text' in c").replace(
        "'<begin> <' + c['type'] + '> <end>'", "''"
    )
    with pytest.raises(UnsupportedError, match="Expected a chat template that takes 1 videos"):
        prepared(qwen, Video(pictures(2)), QUESTION)


@pytest.mark.parametrize("name", [
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "video_llava",
    "video_llama_3", "internvl",
])  # fmt: skip
def test_real_processors(name, tmp_path):
    """Five frames and a picture, through every family's own code; drawn too."""
    pytest.importorskip("torchvision")
    from tokensieve.evaluate.overlay import check_overlay, write_overlay
    from toys.real_videos import real_videos

    loaded = real_videos(name)
    video = Video([noise(24, 40, seed=i) for i in range(5)], [0.5, 1.5, 2.5, 3.5, 4.5])
    for shown in (video, [noise(30, 50, seed=9), video]):
        answer = ask(loaded, shown, QUESTION, "stride", Settings(keep=0.5, max_new_tokens=2))
        assert 0 < answer.kept_tokens < 0.6 * answer.visual_tokens
        crops = [len(image.crops) for image in answer.images if image.video]
        assert crops == ([] if name == "internvl" else [3 if "qwen" in name else 5])
        check_overlay(loaded, shown, QUESTION)
        for suffix in ("png", "gif"):
            target = tmp_path / f"kept.{suffix}"
            write_overlay(target, loaded.processor, shown, QUESTION, [answer])
            assert target.stat().st_size > 0


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
