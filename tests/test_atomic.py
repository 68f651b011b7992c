import pytest

from ja_instruct.atomic import replacing


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_new_file(tmp_path):
    target = tmp_path / "deep" / "answers.jsonl"
    with replacing(target) as new:
        new.write_text("新", "utf-8")
        assert not target.exists()
    assert target.read_text("utf-8") == "新"
    assert names(target.parent) == ["answers.jsonl"]


def test_file_keeps_its_content_until_the_end(tmp_path):
    target = tmp_path / "answers.jsonl"
    target.write_text("旧", "utf-8")
    with replacing(target) as new:
        new.write_text("新", "utf-8")
        assert target.read_text("utf-8") == "旧"
    assert target.read_text("utf-8") == "新"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_file_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "answers.jsonl"
    target.write_text("旧", "utf-8")
    with pytest.raises(error), replacing(target) as new:
        new.write_text("半分", "utf-8")
        raise error
    assert target.read_text("utf-8") == "旧"
    assert names(tmp_path) == ["answers.jsonl"]


def test_interrupted_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), replacing(tmp_path / "adapter") as new:
        new.mkdir()
        (new / "half.safetensors").touch()
        raise ValueError
    assert names(tmp_path) == []


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError), replacing(target):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_directory_is_replaced_not_merged(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old.safetensors").touch()
    with replacing(target) as new:
        new.mkdir()
        (new / "new.safetensors").touch()
        assert names(target) == ["old.safetensors"]
    assert names(target) == ["new.safetensors"]
    assert names(tmp_path) == ["adapter"]


def test_interrupted_directory_leaves_the_old_one(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old.safetensors").touch()
    with pytest.raises(ValueError), replacing(target) as new:
        new.mkdir()
        (new / "half.safetensors").touch()
        raise ValueError
    assert names(target) == ["old.safetensors"]
    assert names(tmp_path) == ["adapter"]


def test_directory_is_put_back_when_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old.safetensors").touch()

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"), replacing(target) as new:
        new.mkdir()
    assert names(target) == ["old.safetensors"]
    assert names(tmp_path) == ["adapter"]


def test_link_is_replaced_and_what_it_points_to_is_left(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("旧", "utf-8")
    target = tmp_path / "answers.jsonl"
    target.symlink_to(elsewhere)
    with replacing(target) as new:
        new.write_text("新", "utf-8")
    assert target.read_text("utf-8") == "新"
    assert elsewhere.read_text("utf-8") == "旧"
