"""The command publish."""

from nnunet_alice.cli.main import main


def test_it_writes_the_folder_and_says_what_was_left_out(checkpoint, tmp_path, capsys):
    assert main(["publish", "-i", str(checkpoint), "-o", str(tmp_path / "chest"), "--licence", "apache-2.0"]) == 0
    printed = capsys.readouterr().out
    assert "Left out: names and files of the 2 cases." in printed and "--sha256" in printed
    assert "# chest" in (tmp_path / "chest" / "README.md").read_text()
