"""Checks `kfc data shard` against the webdataset package, both ways: what kfc writes, webdataset reads; what webdataset
writes, kfc reads.

    python tools/check_webdataset.py target/debug/kfc            # needs: pip install webdataset
    python tools/check_webdataset.py --fixture cli/tests/data    # writes the archives that the tests read
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import webdataset as wds

ROWS = [
    {"text": "aspirin inhibits cyclooxygenase", "knowledge_id": "k0", "metadata": {"source": "a.txt"}},
    {"prompt": "1 + 1 = ", "completion": "2"},
    {"messages": [{"role": "user", "content": "中文?"}, {"role": "assistant", "content": "是的。"}]},
    {"text": "naïve\n\"quoted\" \\ and\ttabs"},
] + [{"text": f"row {i} " + "x" * (i * 37 % 900)} for i in range(40)]


def write(pattern: str, count: int) -> None:
    """Samples as webdataset writes them: .json rows, .txt rows with a .cls, and members that are no text."""
    with wds.ShardWriter(pattern, maxcount=count, verbose=0, mtime=0) as sink:
        for i, row in enumerate(ROWS):
            sample = {"__key__": f"part/{i:06d}"}
            if set(row) == {"text"} and i % 2:
                sample |= {"txt": row["text"], "cls": i, "png": b"\x89PNG" + bytes(i)}
            else:
                sample["json"] = row
            sink.write(sample)


def as_read(i: int, row: dict) -> dict:
    return row | {"cls": i} if set(row) == {"text"} and i % 2 else row


def check(kfc: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")

        run = lambda *args: subprocess.run([kfc, "data", "shard", *map(str, args), "--quiet"], check=True)
        run(rows, "--out", folder / "ours-{000..003}.tar")
        dataset = wds.WebDataset(str(folder / "ours-{000..003}.tar"), shardshuffle=False).decode()
        read = [sample["json"] for sample in dataset]
        assert read == ROWS, "webdataset reads other rows than kfc wrote"
        print(f"webdataset reads the {len(read)} rows of kfc's shards")

        write(str(folder / "theirs-%06d.tar"), 12)
        back = folder / "back.jsonl"
        run(folder / "theirs-{000000..000003}.tar", "--out", back)
        read = [json.loads(line) for line in back.read_text(encoding="utf-8").splitlines()]
        assert read == [as_read(i, row) for i, row in enumerate(ROWS)], "kfc reads other rows than webdataset wrote"
        print(f"kfc reads the {len(read)} rows of webdataset's shards")


if __name__ == "__main__":
    if sys.argv[1] == "--fixture":
        folder = Path(sys.argv[2])
        write(str(folder / "webdataset-%06d.tar"), 30)
        rows = [as_read(i, row) for i, row in enumerate(ROWS)]
        (folder / "webdataset.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    else:
        check(sys.argv[1])
