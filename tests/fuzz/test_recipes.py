"""Recipes that are nearly right: an error of one line that names the recipe or the option; no code is run."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from botnet.cli import main
from botnet.errors import BotnetError
from botnet.training.recipes import with_bases
from tests.support.fuzz import cases, nearly, nothing_written
from tests.support.recipes import write_recipe

FRAGMENTS = st.sampled_from(
    [
        "[", "{", "]", "'", "- - -", "&a [*a]", "*b", "!!python/name:os.system", "? ", "%YAML 9", "\t", "\0",
        "!!python/object/apply:os.mkdir [sprung]", "!!binary aa", "1e999", ".nan", "0x", "2001-01-01", "\x85",
        "[" * 3000, "{a: " * 3000, "../..", "~", "yes", "\ud800", "<<: 1",
    ]
)  # fmt: skip


@cases(12)
@given(data=st.data())
def test_the_bases_of_broken_recipes(data):
    """Bases are read before Lightning's parser sees the recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base.yaml").write_text("trainer: {max_epochs: 1}")
        whole = b"base: base.yaml\ntrainer:\n  max_epochs: 2\n"
        text = whole.replace(b"base.yaml", data.draw(FRAGMENTS).encode(errors="surrogatepass"))
        recipe = folder / "recipe.yaml"
        recipe.write_bytes(data.draw(st.just(text) | nearly(whole)))
        with nothing_written(folder):
            try:
                words = with_bases(["fit", "--config", str(recipe)])
            except BotnetError as error:
                assert str(recipe) in str(error)
                return
            assert words[-1] == str(recipe)


@pytest.mark.long
@cases(3)
@given(data=st.data())
def test_broken_recipes(data):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "digits").mkdir()
        recipe = write_recipe(folder / "recipe.yaml", folder / "digits", folder / "run")
        text, line = recipe.read_text().splitlines(), data.draw(st.integers(0, 30))
        line %= len(text)
        text[line] = text[line].partition(":")[0] + ": " + data.draw(FRAGMENTS)
        recipe.write_bytes("\n".join(text).encode(errors="surrogatepass"))
        with nothing_written(folder):
            # The data do not exist: it is refused in any case.
            assert main(["fit", "--config", str(recipe)]) == 2


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_deeply_nested_recipes_are_refused(depth, tmp_path, capsys):
    recipe = tmp_path / "deep.yaml"
    recipe.write_text("trainer: " + "[" * depth + "]" * depth)
    assert main(["fit", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "deep.yaml" in error
    assert "Traceback" not in error


def test_a_recipe_of_many_references_is_not_expanded(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    recipe = tmp_path / "laughs.yaml"
    recipe.write_text("\n".join(lines))
    assert main(["fit", "--config", str(recipe)]) == 2


def test_tags_of_python_are_not_executed(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"seed_everything: !!python/object/apply:os.mkdir [{tmp_path / 'sprung'}]\n")
    assert main(["fit", "--config", str(recipe)]) == 2
    assert not (tmp_path / "sprung").exists()
    content = yaml.safe_dump(
        {"model": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "x"]}}}
    )
    recipe.write_text(content)
    with nothing_written(tmp_path):
        assert main(["fit", "--config", str(recipe)]) == 2


def test_a_recipe_in_another_encoding_is_refused(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes("seed_everything: 1\nrow: é\n".encode("latin-1"))
    assert main(["fit", "--config", str(recipe)]) == 2
    assert f"{recipe}, line 2: is not UTF-8; save it in that encoding" in capsys.readouterr().err
