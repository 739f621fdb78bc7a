"""Requests of a list: what a file may say, names that never collide, mistakes with their lines."""

import json

import pytest

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.requests.lists import ListError, requests_of
from lvsa.launch.requests.names import default_name, named
from tests.support.errors import refuses


def requests(*arguments):
    return requests_of(parse(list(arguments)))


def of_file(path, content, *arguments):
    path.write_text(content, encoding="utf-8")
    return requests("--prompts", str(path), *arguments)


def prompts(found):
    return [request.config.video.prompt for request in found]


def test_a_prompt_must_be_given_and_may_be_empty():
    with refuses(LVSAError, "--prompt", "--prompts", '--prompt ""'):
        requests("--seeds", "0", "1")
    (request,) = requests("--prompt", "")
    assert request.config.video.prompt == ""


def test_a_text_has_a_prompt_on_each_line(tmp_path):
    found = of_file(tmp_path / "a.txt", "\ufeff a red circle \r\n\n# 獅子\n", "--steps", "3")
    assert prompts(found) == ["a red circle", "# 獅子"]
    assert [request.where for request in found] == ["a.txt, line 1", "a.txt, line 3"]
    assert {request.config.sampling.steps for request in found} == {3}
    assert all(request.config.listing.prompts is None for request in found)


OWN = {
    "prompt": "x", "negative_prompt": "y", "seed": 3, "output_name": "clip", "num_frames": 9,
    "height": 32, "width": 48, "fps": 8, "steps": 2, "guidance": 4.0, "strength": 0.5, "lvsa": True,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "yaml"])
def test_a_request_says_what_is_different(tmp_path, suffix):
    """JSON is YAML, but for a list one entry a line."""
    files = {name: f"{name}.png" for name in ("image", "last_image", "video")}
    lines = [json.dumps({**OWN, **files}), json.dumps({"prompt": "z", "num-inference-steps": 7})]
    if suffix == "yaml":
        lines = [f"- {line}" for line in lines] + ["- a: text alone", "- another"][1:]
    found = of_file(tmp_path / f"a.{suffix}", "\n".join(lines), "--seed", "5", "--steps", "4")
    plain = [request.config.as_dict() for request in found]
    assert OWN.items() <= plain[0].items()
    assert {name: plain[0][name] for name in files} == {
        name: str(tmp_path / file) for name, file in files.items()
    }, "files are looked for beside the list"
    assert (plain[1]["prompt"], plain[1]["seed"], plain[1]["steps"]) == ("z", 5, 7)
    assert prompts(found[2:]) == (["another"] if suffix == "yaml" else [])


def test_every_request_with_every_seed(tmp_path):
    found = of_file(
        tmp_path / "a.yaml", "- a\n- {prompt: b, output_name: B.mp4}\n", "--seeds", "4", "2"
    )
    assert [
        (r.config.video.prompt, r.config.sampling.seed, r.config.output.output_name) for r in found
    ] == [("a", 4, None), ("a", 2, None), ("b", 4, "B-4"), ("b", 2, "B-2")]
    assert [r.config.sampling.seed for r in requests("--prompt", "a", "--seeds", "1", "0")] == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.txt", "", ["a.txt"]),
        ("a.txt", "\n \n", ["a.txt"]),
        ("a.txt", "a\udce9".encode("utf-8", "surrogateescape"), ["a.txt"]),
        ("a.txt", '{"prompt": "a"}', ["line 1", "*.jsonl"]),
        ("a.json", '[{"prompt": "a"}]', ["line 1", "*.jsonl"]),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', ["line 2"]),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ["line 1", "prompt"]),
        ("a.jsonl", '{"prompt": "a", "steps": 1, "num_inference_steps": 2}', ["line 1", "steps"]),
        ("a.jsonl", "3", ["line 1", 3]),
        ("a.jsonl", '{"seed": 1}', ["line 1", "prompt"]),
        ("a.jsonl", '{"promt": "a"}', ["line 1", "promt", "prompt"]),
        ("a.jsonl", '{"prompt": "a", "model": "b"}', ["line 1", "model", "seed"]),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b", "seed": -1}', ["line 3", "--seed", -1]),
        ("a.jsonl", '{"prompt": ["a"]}', ["line 1", "prompt"]),
        ("a.yaml", "prompt: a", ["a.yaml", "- prompt"]),
        ("a.yaml", "- [a]", ["line 1"]),
        ("a.yaml", "- {prompt: a}\n- {prompt: {b: c}}", ["line 2"]),
        ("a.yaml", "- a\n---\n- b", ["a.yaml"]),
        ("a.yaml", f"- {'a' * 300_000}", [262_144]),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path, name, content, named):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refuses(LVSAError, *named):
        requests("--prompts", str(path))


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    content = "".join(f'{{"prompt": "a", "seed": {-n}}}\n' for n in range(30))
    with refuses(ListError, "line 2", -1, "line 21", -20, 9) as caught:
        of_file(tmp_path / "a.jsonl", content)
    assert "line 22" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", "b"], ["--prompt", "--prompts"]),
        (["--output-name", "b"], ["--output-name", "--prompts"]),
        (["--seed", "3", "--seeds", "4"], ["--seed 3", "--seeds"]),
        (["--seeds", "4", "5", "4"], ["--seeds", 4]),
        (["--seeds", "4", "-5"], ["--seed", -5]),
    ],
)
def test_flags_that_exclude_one_another(tmp_path, arguments, named):
    with refuses(LVSAError, *named):
        of_file(tmp_path / "a.txt", "a", *arguments)


def test_a_seed_of_a_request_and_seeds_of_all_exclude_one_another(tmp_path):
    with refuses(ListError, "line 1", "seed", 7, "--seeds"):
        of_file(tmp_path / "a.jsonl", '{"prompt": "a", "seed": 7}', "--seeds", "1")


LONG = "a lighthouse in a storm, waves breaking over the rocks, seen from far above"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red, RED circle!", "a-red-red-circle-0"),
        ("ein Löwe ✓ 獅子", "ein-löwe-獅子-0"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया-0"),
        ("Lo\u0308we", "löwe-0"),
        ("", "video-0"),
        (" ", "video-0"),
        ("🔴🔵", "video-d6e190-0"),
        ("../../etc/passwd", "etc-passwd-0"),
        (LONG, "a-lighthouse-in-a-storm-waves-breaking-over-the-1ecf5b-0"),
    ],
)
def test_names_show_the_prompt_in_any_script(prompt, name):
    (request,) = requests("--prompt", prompt, "--lvsa")
    assert default_name(request.config) == name
    (request,) = requests("--prompt", prompt)
    assert default_name(request.config) == f"{name}-dense"


def names(found):
    return [request.config.output.output_name for request in named(found)]


def test_names_never_collide(tmp_path):
    content = (
        '{"prompt": "a b"}\n{"prompt": "A, b!"}\n{"prompt": "a b", "steps": 7}\n'
        '{"prompt": "c"}\n{"prompt": "d", "output_name": "C-0-dense"}\n'
        '{"prompt": "a b", "lvsa": true}\n'
    )
    found = names(of_file(tmp_path / "a.jsonl", content))
    assert len({name.casefold() for name in found}) == 6
    assert found[0] == "a-b-0-dense" and found[4] == "C-0-dense" and found[5] == "a-b-0"
    assert all(name.startswith(("a-b-0-dense-", "c-0-dense-")) for name in found[1:4])
    longer = names(of_file(tmp_path / "b.jsonl", content + '{"prompt": "a b", "steps": 8}\n'))
    assert longer[:6] == found, "a list may grow at its end"
    assert names(requests("--prompt", LONG, "--seeds", "1", "2"))[1].endswith("-2-dense")
    differ = names(requests("--prompt", LONG + "!")) + names(requests("--prompt", LONG + "?"))
    assert len(set(differ)) == 2, "cut off, and told apart by a digest"


@pytest.mark.parametrize(
    ("content", "named_"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}', ["line 3", "line 1"]),
        ('{"prompt": "a", "output_name": "x"}\n{"prompt": "b", "output_name": "X.mp4"}',
         ["line 2", "X.mp4", "line 1"]),
    ],
)  # fmt: skip
def test_the_same_video_or_name_twice(tmp_path, content, named_):
    with refuses(ListError, *named_):
        names(of_file(tmp_path / "a.jsonl", content))
